"""Micro-batches of one optimizer step: taken together, counted, moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tune.utils.mesh import Mesh

__all__ = ["TokenCounts", "count_tokens", "group_micro_batches", "sum_counts", "to_device"]

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

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(
            self.num_tokens + other.num_tokens,
            self.num_targets + other.num_targets,
            self.sum_of_squares + other.sum_of_squares,
        )


def count_tokens(
    batches: Sequence[Mapping[str, Tensor]], padding_idx: int, ignore_idx: int = -100
) -> TokenCounts:
    """Return the counts of batches that are still on the host, where counting waits for nobody.

    Args:
        batches: each with `tokens` [b, s] and unshifted `labels` [b, s]; `input_pos` [b, s] if packed.
        padding_idx: the token that pads.
        ignore_idx: the label that is not trained on.
    """
    total = TokenCounts()
    for batch in batches:
        tokens, labels = batch["tokens"], batch["labels"]
        is_token = tokens != padding_idx
        if "input_pos" in batch:
            positions = batch["input_pos"]
        else:
            positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        # 1 + 3 + 5 + ... of l terms is l squared, so every document adds its own square.
        squares = ((2 * positions + 1) * is_token).sum()
        # A row's first label has no position before it that could predict it.
        num_targets = (labels[:, 1:] != ignore_idx).sum()
        total += TokenCounts(int(is_token.sum()), int(num_targets), int(squares))
    return total


def sum_counts(counts: TokenCounts, mesh: Mesh) -> TokenCounts:
    """Return the counts of all processes together; each of them must call this."""
    return TokenCounts(*mesh.sum(astuple(counts)))


def group_micro_batches(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` batches, the last one shorter when they do not come out even."""
    group: list[T] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch on `device`, without waiting for the copy where memory is pinned."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
