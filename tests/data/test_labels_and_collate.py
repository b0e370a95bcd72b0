"""Labels, shifting, padding, and the positions that keep packed documents apart."""

from __future__ import annotations

import pytest
import torch

from tune.data import (
    CROSS_ENTROPY_IGNORE_IDX,
    DataReport,
    block_causal_mask,
    masked_labels,
    padded_collate,
    padded_collate_sft,
    shift_labels,
    truncate,
)
from tune.data.collate import gpu_lengths, padded_length
from tune.errors import DataError


def test_the_ignored_label_is_the_one_that_torch_ignores():
    assert torch.nn.CrossEntropyLoss().ignore_index == CROSS_ENTROPY_IGNORE_IDX


def test_each_position_predicts_the_next_label():
    labels = torch.tensor([[5, -100, 7], [8, 9, 10]])
    assert shift_labels(labels).tolist() == [[-100, 7, -100], [9, 10, -100]]
    assert labels.tolist() == [[5, -100, 7], [8, 9, 10]]
    assert shift_labels(labels, ignore_idx=-7)[0].tolist() == [-100, 7, -7]


def test_padding_is_on_the_right_and_carries_no_label():
    batch = [{"tokens": [1, 2, 3], "labels": [-100, 2, 3]}, {"tokens": [4], "labels": [4]}]
    collated = padded_collate_sft(batch, padding_idx=9)
    assert collated["tokens"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert collated["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert set(collated) == {"tokens", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in collated.values())
    assert padded_collate(batch, "tokens", 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    with pytest.raises(DataError, match="0 examples"):
        padded_collate_sft([])


def test_rows_are_padded_to_a_multiple():
    batch = [
        {"tokens": [1, 2, 3], "labels": [-100, 2, 3], "input_pos": [0, 1, 2], "weights": [0.0, 0.5, 1.0]},
        {"tokens": [4, 5], "labels": [-100, 5], "input_pos": [0, 1]},
    ]
    collated = padded_collate_sft(batch, padding_idx=9, pad_to_multiple_of=5)
    assert collated["tokens"].tolist() == [[1, 2, 3, 9, 9], [4, 5, 9, 9, 9]]
    assert collated["labels"].tolist() == [[-100, 2, 3, -100, -100], [-100, 5, -100, -100, -100]]
    assert collated["weights"].tolist() == [[0.0, 0.5, 1.0, 1.0, 1.0], [1.0] * 5]
    assert collated["input_pos"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert padded_collate_sft(batch, pad_to_multiple_of=3)["tokens"].shape == (2, 3)
    with pytest.raises(DataError, match="pad_to_multiple_of is 0"):
        padded_collate_sft(batch, pad_to_multiple_of=0)


def test_on_a_gpu_rows_have_few_lengths():
    assert gpu_lengths(DataReport()) == (128, None)
    assert gpu_lengths(DataReport(max_seq_len=1000)) == (128, 1000)
    assert gpu_lengths(DataReport(max_seq_len=1000, num_packs=3)) == (1000, 1000)
    lengths = (1, 128, 129, 950, 1000)
    assert [padded_length(length, 128, 1000) for length in lengths] == [128, 128, 256, 1000, 1000]
    assert padded_length(1001, 128, 1000) == 1001
    assert padded_length(950, 1000, 1000) == 1000
    batch = [{"tokens": [1, 2, 3], "labels": [-100, 2, 3]}]
    assert padded_collate_sft(batch, pad_to_multiple_of=8, max_seq_len=5)["labels"].shape == (1, 5)


def test_a_packed_batch_gets_positions_and_nothing_larger():
    batch = [
        {"tokens": [1, 2, 1, 3, 4], "labels": [-100, 2, -100, 3, 4], "input_pos": [0, 1, 0, 1, 2]},
        {"tokens": [1, 5, 6], "labels": [-100, 5, 6], "input_pos": [0, 1, 2]},
    ]
    collated = padded_collate_sft(batch, padding_idx=0)
    assert collated["input_pos"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]
    assert all(tensor.shape == (2, 5) for tensor in collated.values())
    mask = block_causal_mask(collated["input_pos"])
    assert mask.shape == (2, 5, 5)
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    # Padding is a document of its own.
    assert mask[1].int().tolist()[3:] == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def test_one_document_alone_is_plainly_causal():
    assert block_causal_mask(torch.arange(7)[None])[0].equal(torch.ones(7, 7, dtype=torch.bool).tril())


def test_a_cut_sequence_has_no_eos_unless_asked_for():
    assert truncate([1, 2, 3, 4], 3) == [1, 2, 3]
    assert truncate([1, 2, 3, 4], 3, eos_id=9) == [1, 2, 9]
    assert truncate([1, 2, 3], 3, eos_id=9) == [1, 2, 3]


def test_masked_labels_need_a_mask_of_equal_length():
    assert masked_labels([4, 5, 6], [True, False, True]) == [-100, 5, -100]
    with pytest.raises(ValueError, match="shorter"):
        masked_labels([4, 5], [True])
