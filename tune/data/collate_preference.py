"""Batches of preference data: each pair as two rows, or rows that hold several pairs; or judged answers.

Shapes: b rows, s sequence, n pairs or judged answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tune.data.collate import padded_collate, padded_collate_sft
from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX
from tune.data.packing import join_examples
from tune.errors import DataError

_Side = Mapping[str, Any]


def padded_collate_dpo(
    batch: Sequence[Mapping[str, Any]],
    padding_idx: int = 0,
    ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX,
    pad_to_multiple_of: int = 1,
    max_seq_len: int | None = None,
) -> dict[str, Tensor]:
    """Return one batch of pairs, all chosen answers before all rejected ones; or of judged answers.

    Judged answers are followed by as many prompts with the answer of the example before, from which KTO takes what
    answers that do not belong to a prompt are worth.

    Args:
        batch: items of a `PreferenceDataset`, packed or not, or of an `UnpairedDataset`; pairs may also have
            torchtune's keys: `chosen_input_ids`, `chosen_labels`, `rejected_input_ids`, `rejected_labels`. What they
            hold as `reference`, log-probabilities of their answers in order, is in the batch as well.
        padding_idx: token to pad with.
        ignore_idx: label to pad with.
        pad_to_multiple_of: rows have such a length.
        max_seq_len: rows are not padded beyond this; an answer joined to another prompt is cut there.

    Raises:
        DataError: the batch is empty, or an item holds no pair and no verdict.

    Returns:
        tokens, labels: not shifted. [2 n, s] int64, of packed pairs [b, s]
        answers: the number of the answer that a token belongs to; -1 for padding. As the tokens, int64
        verdicts: 1 for a pair or a good answer, -1 for a bad one, 0 for what has nothing to learn. [n] int64
        input_pos: packed pairs only, position of each token in its document. [b, s] int64
        margins: of pairs, where items have them; 0 for those that have none. [n] float32
        reference: where items have it. [2 n] float32
    """
    if not batch:
        raise DataError("a batch of 0 pairs cannot be put together")
    shape: dict[str, Any] = {
        "padding_idx": padding_idx,
        "ignore_idx": ignore_idx,
        "pad_to_multiple_of": pad_to_multiple_of,
        "max_seq_len": max_seq_len,
    }
    if "verdict" in batch[0]:
        return _collate_judged(batch, ignore_idx, shape)
    items = [_as_item(item) for item in batch]
    bounds = [_bounds(item["input_pos"]) for item in items]
    if any(len(each) % 2 for each in bounds):
        raise DataError("an item of the batch holds no pair: preference data comes of dataset=preference")
    sides = [_part(item, start, end) for item, each in zip(items, bounds, strict=True) for start, end in each]
    is_real = [
        _is_learnt(one) and _is_learnt(other) for one, other in zip(sides[::2], sides[1::2], strict=True)
    ]
    if all(len(each) == 2 for each in bounds):
        collated = _rows([*sides[::2], *sides[1::2]], shape)
    else:
        collated = _packed_rows(items, bounds, len(is_real), shape)
    collated["verdicts"] = torch.tensor(is_real, dtype=torch.int64)
    if any("margins" in item for item in items):
        given = [
            margin
            for item, each in zip(items, bounds, strict=True)
            for margin in item.get("margins", [0.0] * (len(each) // 2))
        ]
        collated["margins"] = torch.tensor(given, dtype=torch.float32)
    if all("reference" in item for item in batch):
        known = [value for item in batch for value in item["reference"]]
        collated["reference"] = torch.tensor([*known[::2], *known[1::2]], dtype=torch.float32)
    return collated


def _rows(sides: Sequence[_Side], shape: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a row for each answer."""
    collated = padded_collate_sft(sides, **shape)
    numbers = [{"answers": [row] * len(side["tokens"])} for row, side in enumerate(sides)]
    length = collated["tokens"].shape[1]
    return {**collated, "answers": padded_collate(numbers, "answers", -1, length)}


def _packed_rows(
    items: Sequence[Mapping[str, Any]],
    bounds: Sequence[Sequence[tuple[int, int]]],
    num_pairs: int,
    shape: Mapping[str, Any],
) -> dict[str, Tensor]:
    collated = padded_collate_sft(items, **shape)
    collated["answers"] = torch.full(collated["tokens"].shape, -1)
    number = 0
    for row, each in zip(collated["answers"], bounds, strict=True):
        for start, end in each:
            row[start:end] = number // 2 + (number % 2) * num_pairs
            number += 1
    return collated


def _collate_judged(
    batch: Sequence[Mapping[str, Any]], ignore_idx: int, shape: dict[str, Any]
) -> dict[str, Tensor]:
    is_real = [_is_learnt(item) for item in batch]
    real = [item for item, learnt in zip(batch, is_real, strict=True) if learnt]
    sides: list[_Side] = [{"tokens": item["tokens"], "labels": item["labels"]} for item in batch]
    mismatched = [_join_prompt(item, real[index - 1], ignore_idx, shape) for index, item in enumerate(real)]
    if len(real) < 2:  # its own answer would say nothing of others
        mismatched = []
    # Rows without anything to learn: as many as there are answers, so that both halves are alike.
    empty = [{"tokens": [shape["padding_idx"]], "labels": [ignore_idx]}] * (len(batch) - len(mismatched))
    collated = _rows([*sides, *mismatched, *empty], shape)
    verdicts = [item["verdict"] * learnt for item, learnt in zip(batch, is_real, strict=True)]
    collated["verdicts"] = torch.tensor(verdicts, dtype=torch.int64)
    if all("reference" in item for item in batch):
        raise DataError("a reference that is computed beforehand knows nothing of answers to other prompts")
    return collated


def _join_prompt(item: _Side, other: _Side, ignore_idx: int, shape: Mapping[str, Any]) -> _Side:
    """Return the prompt of one example with the answer of another."""
    prompt, start = _num_asked(item), _num_asked(other)
    limit = shape["max_seq_len"]
    tokens = [*item["tokens"][:prompt], *other["tokens"][start:]][:limit]
    labels = [*[ignore_idx] * prompt, *other["labels"][start:]][:limit]
    return {"tokens": tokens, "labels": labels}


def _num_asked(item: _Side) -> int:
    """Return the number of tokens before the first one that is learnt."""
    return next(place for place, label in enumerate(item["labels"]) if label >= 0)


def _is_learnt(side: _Side) -> bool:
    return any(label >= 0 for label in side["labels"][1:])


def _as_item(item: Mapping[str, Any]) -> Mapping[str, Any]:
    if "chosen_input_ids" in item:
        sides = [
            {"tokens": list(item[f"{side}_input_ids"]), "labels": list(item[f"{side}_labels"])}
            for side in ("chosen", "rejected")
        ]
        return join_examples(sides)
    if "input_pos" not in item:
        raise DataError("an item of the batch holds no pair: preference data comes of dataset=preference")
    return item


def _bounds(input_pos: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each document of a row begins and ends."""
    starts = [place for place, position in enumerate(input_pos) if position == 0]
    return list(pairwise([*starts, len(input_pos)]))


def _part(item: Mapping[str, Any], start: int, end: int) -> _Side:
    return {name: item[name][start:end] for name in ("tokens", "labels")}
