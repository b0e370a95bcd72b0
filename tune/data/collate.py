"""Batches from examples: right padding, and the positions of packed documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX
from tune.data.report import DataReport
from tune.errors import DataError

# Tokens that rows are padded to a multiple of on a GPU, see `gpu_lengths`.
GPU_MULTIPLE = 128


def padded_collate_sft(
    batch: Sequence[Mapping[str, Any]],
    padding_idx: int = 0,
    ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX,
    pad_to_multiple_of: int = 1,
    max_seq_len: int | None = None,
) -> dict[str, Tensor]:
    """Return a batch padded on the right to its longest example, or to the next multiple of a number of tokens.

    Padding stands after every real token and carries no label, so causal attention needs no mask for it.
    Packed examples (those with `input_pos`) also get the positions, by which the decoder keeps their documents
    apart; the padding of a row is then a document of its own.

    Args:
        batch: examples with `tokens` and `labels` of equal length, packed ones with `input_pos` as well, and
            `weights` where the loss of a token is to be multiplied by another than 1.
        padding_idx: id to pad tokens with; any valid id.
        ignore_idx: label of padding.
        pad_to_multiple_of: tokens that the length of a row is a multiple of.
        max_seq_len: tokens beyond which no row is made longer for that; None: whatever the multiple takes.

    Raises:
        DataError: the batch is empty, or there is no multiple of such a number.

    Returns:
        tokens: [b, s] int64
        labels: not shifted, see `shift_labels`. [b, s] int64
        weights: where an example has them, not shifted; 1 in the others. [b, s] float32
        input_pos: packed examples only, position of each token in its document. [b, s] int64
    """
    if not batch:
        raise DataError("a batch of 0 examples cannot be put together")
    if pad_to_multiple_of < 1:
        raise DataError(f"pad_to_multiple_of is {pad_to_multiple_of}, expected at least 1")
    longest = max(len(example["tokens"]) for example in batch)
    length = padded_length(longest, pad_to_multiple_of, max_seq_len)
    collated = {
        "tokens": padded_collate(batch, "tokens", padding_idx, length),
        "labels": padded_collate(batch, "labels", ignore_idx, length),
    }
    if any("weights" in example for example in batch):
        collated["weights"] = torch.ones(collated["tokens"].shape)  # [b, s]
        for row, example in zip(collated["weights"], batch):
            if "weights" in example:
                row[: len(example["weights"])] = torch.as_tensor(example["weights"])
    if "input_pos" in batch[0]:
        collated["input_pos"] = padded_collate(batch, "input_pos", 0, length)  # [b, s]
        for positions, example in zip(collated["input_pos"], batch):
            padding = positions[len(example["input_pos"]) :]
            padding.copy_(torch.arange(len(padding)))
    return collated


def padded_collate(
    batch: Sequence[Mapping[str, Any]], key: str, padding: int, pad_to_multiple_of: int = 1
) -> Tensor:
    """Return one field of all examples, padded on the right to the longest, or to the next multiple. [b, s] int64"""
    length = padded_length(max(len(example[key]) for example in batch), pad_to_multiple_of)
    padded = torch.full((len(batch), length), padding, dtype=torch.int64)  # [b, s]
    for row, example in zip(padded, batch):
        row[: len(example[key])] = torch.as_tensor(example[key], dtype=torch.int64)
    return padded


def padded_length(longest: int, multiple: int, max_seq_len: int | None = None) -> int:
    """Return the next multiple, but not beyond `max_seq_len` unless the longest row is."""
    length = -(-longest // multiple) * multiple
    return length if max_seq_len is None else max(longest, min(length, max_seq_len))


def gpu_lengths(report: DataReport) -> tuple[int, int | None]:
    """Return the multiple to pad rows to on a GPU, and the length beyond which not to.

    Each new length makes attention's kernels plan or compile anew. So packed rows have one length, and others few.
    """
    multiple = report.max_seq_len if report.num_packs and report.max_seq_len else GPU_MULTIPLE
    return multiple, report.max_seq_len


def block_causal_mask(input_pos: Tensor) -> Tensor:
    """Return which tokens each token may attend to: itself and the earlier ones of its own document.

    Args:
        input_pos: positions that start at 0 with each document. [b, s]

    Returns:
        True where query i may attend to key j. [b, s, s] bool
    """
    document = (input_pos == 0).cumsum(dim=-1)  # [b, s], 1 for the first document
    same = document.unsqueeze(-1) == document.unsqueeze(-2)  # [b, s, s]
    return same.tril()
