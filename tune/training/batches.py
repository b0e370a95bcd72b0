"""Micro-batches of one optimizer step: taken together, counted, moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from tune.utils.mesh import Mesh

__all__ = ["TokenCounts", "count_targets", "count_tokens", "group_micro_batches", "to_device"]

T = TypeVar("T")


@dataclass(frozen=True)
class TokenCounts:
    """What some micro-batches hold, padding left out.

    Args:
        num_tokens: tokens.
        num_targets: positions whose next token is trained on: the divisor of the loss.
        sum_of_squares: squared lengths of the documents, which attention's work follows.
    """

    num_tokens: int = 0
    num_targets: int = 0
    sum_of_squares: int = 0


def count_tokens(
    batches: Sequence[Mapping[str, Tensor]], padding_idx: int, num_targets: int, mesh: Mesh
) -> TokenCounts:
    """Return the counts of the batches of all processes, on the host, where counting waits for nobody.

    Every process must call this.

    Args:
        batches: each with `tokens` [b, s]; `input_pos` [b, s] if packed.
        padding_idx: the token that pads.
        num_targets: positions in them that are trained on, as the objective has counted them.
        mesh: the processes of the run.
    """
    num_tokens = sum_of_squares = 0
    for batch in batches:
        tokens = batch["tokens"]
        is_token = tokens != padding_idx
        if "input_pos" in batch:
            positions = batch["input_pos"]
        else:
            positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        # 1 + 3 + 5 + ... of l terms is l squared, so every document adds its own square.
        sum_of_squares += int(((2 * positions + 1) * is_token).sum())
        num_tokens += int(is_token.sum())
    return TokenCounts(*mesh.sums((num_tokens, num_targets, sum_of_squares)))


def count_targets(labels: Tensor, ignore_idx: int = -100) -> int:
    """Return how many positions of unshifted `labels` [b, s], still on the host, are trained on.

    A row's first label has no position before it that could predict it.
    """
    return int((labels[:, 1:] != ignore_idx).sum())


def group_micro_batches(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` batches, the last one shorter when they do not come out even."""
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch on `device`, without waiting for the copy where memory is pinned."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
