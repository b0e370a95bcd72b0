"""Micro-batches of one optimizer step: taken together, counted, moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from tune.data import shift_labels
from tune.errors import ConfigError
from tune.modules.loss.answers import with_text
from tune.utils.mesh import Mesh

__all__ = [
    "TokenCounts",
    "collate_with_lengths",
    "count_targets",
    "count_tokens",
    "group_micro_batches",
    "to_device",
]

LENGTHS = "document_lengths"
NUM_TARGETS = "num_targets"
NUM_TEXT_TARGETS = "num_text_targets"

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
        batches: each with its `document_lengths`, as loaders of `build_loader` give them. Without: with
            `tokens` [b, s], and `labels` and (if packed) `input_pos`, of which tokens that pad, at either end of a row
            and not trained on, are left out.
        padding_idx: the token that pads, which may be one that texts have, too.
        num_targets: positions in them that are trained on, as the objective has counted them.
        mesh: the processes of the run.
    """
    lengths = [
        length
        for batch in batches
        for length in (batch[LENGTHS] if LENGTHS in batch else _find_lengths(batch, padding_idx)).tolist()
    ]
    return TokenCounts(*mesh.sums((sum(lengths), num_targets, sum(length**2 for length in lengths))))


def collate_with_lengths(
    collate: Callable[[Sequence[Mapping[str, Any]]], Any],
    padding_idx: int,
    examples: Sequence[Mapping[str, Any]],
) -> Any:
    """Return the batch that `collate` makes of examples, with the `document_lengths` [n] in it.

    In the batch itself a token that pads may not be told from one of the text. Where examples have no `tokens`, or
    `collate` gives no mapping, its batch is left as it is.

    Raises:
        ConfigError: the examples have `weights`, and the batch has none.

    Args:
        collate: whatever a config names.
        padding_idx: of rows that only even out the processes, which have nothing else and nothing to learn.
        examples: with `tokens`, packed ones with `input_pos`.
    """
    batch = collate(examples)
    if not isinstance(batch, dict) or not all("tokens" in example for example in examples):
        return batch
    if "weights" not in batch and any("weights" in example for example in examples):
        raise ConfigError(
            "the data gives tokens weights other than 1, and collate_fn leaves them out: its batches need `weights` "
            "[b, s] beside `labels`, as those of tune.data.padded_collate_sft have"
        )
    rows = batch.get("tokens")
    longest = rows.shape[1] if isinstance(rows, Tensor) and rows.dim() == 2 else None
    if "verdicts" in batch:  # an example that is a pair has two rows
        longest = None
    lengths: list[int] = []
    for example in examples:
        tokens = torch.as_tensor(example["tokens"])[:longest]
        labels = torch.as_tensor(example.get("labels", ()))
        if (labels >= 0).any() or (tokens != padding_idx).any():
            lengths += _document_lengths(tokens, example.get("input_pos"))
    return {**batch, LENGTHS: torch.tensor(lengths, dtype=torch.int64)}


def _find_lengths(batch: Mapping[str, Tensor], padding_idx: int) -> Tensor:
    """Return the lengths of the documents in a batch, by the tokens themselves."""
    is_text = batch["tokens"] != padding_idx  # [b, s]
    if "labels" in batch and batch["labels"].shape == is_text.shape:
        is_text = is_text | (batch["labels"] >= 0)
    lengths: list[int] = []
    for row, positions in zip(is_text, batch.get("input_pos", [None] * len(is_text)), strict=True):
        places = row.nonzero()
        if len(places):
            first, last = int(places[0]), int(places[-1]) + 1
            lengths += _document_lengths(
                row[first:last], None if positions is None else positions[first:last]
            )
    return torch.tensor(lengths, dtype=torch.int64)


def _document_lengths(tokens: Tensor, input_pos: Any) -> list[int]:
    """Return the length of each document in a row [s]: their positions begin at 0; without positions it is one."""
    later: list[int] = []
    if input_pos is not None:
        later = (torch.as_tensor(input_pos)[1 : len(tokens)] == 0).nonzero().flatten().tolist()
    bounds = [0, *(place + 1 for place in later), len(tokens)]
    return [end - start for start, end in pairwise(bounds)]


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
    """Return the batch on `device`, without waiting for the copy where memory is pinned.

    Where its `labels` [b, s] come from the host, it has the number of targets of each row beside them, `num_targets`
    [b], and that stays on the host; of pairs also `num_text_targets` [b], where the whole text of those that are chosen
    is read.
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    labels = batch.get("labels")
    if labels is not None and labels.device.type == "cpu" and labels.dim() == 2:
        moved[NUM_TARGETS] = (labels[:, 1:] != -100).sum(1)
        if "answers" in batch and "verdicts" in batch:
            num_answers = 2 * len(batch["verdicts"])
            targets = with_text(batch["tokens"], shift_labels(labels), batch["answers"], num_answers)
            moved[NUM_TEXT_TARGETS] = (targets != -100).sum(1)
    return moved
