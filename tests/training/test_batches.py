"""Counting what an optimizer step holds."""

from __future__ import annotations

import torch

from tune.data import padded_collate_sft, shift_labels
from tune.training import count_targets, count_tokens, group_micro_batches, to_device
from tune.training.batches import TokenCounts
from tune.utils.mesh import Mesh

PAD = 0


def test_groups_and_a_shorter_last_one() -> None:
    assert list(group_micro_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(group_micro_batches([], 3)) == []
    assert list(group_micro_batches("ab", 1)) == [["a"], ["b"]]


def test_counts_leave_padding_out_and_equal_the_shifted_targets() -> None:
    examples = [
        {"tokens": [1, 5, 6, 7, 2], "labels": [-100, -100, 6, 7, 2]},
        {"tokens": [1, 9, 2], "labels": [1, 9, 2]},  # the first label has nothing before it
    ]
    batch = padded_collate_sft(examples, PAD)
    counts = count_tokens([batch], PAD, 5, Mesh())
    assert counts == TokenCounts(num_tokens=8, num_targets=5, sum_of_squares=25 + 9)
    assert count_targets(batch["labels"]) == 5 == int((shift_labels(batch["labels"]) != -100).sum())
    assert count_tokens([batch, batch], PAD, 10, Mesh()) == TokenCounts(16, 10, 2 * (25 + 9))
    assert count_tokens([], PAD, 0, Mesh()) == TokenCounts()


def test_packed_documents_count_their_own_squares() -> None:
    packed = {
        "tokens": [1, 5, 2, 1, 7, 8, 2],
        "labels": [-100, 5, 2, -100, 7, 8, 2],
        "input_pos": [0, 1, 2, 0, 1, 2, 3],
    }
    shorter = {"tokens": [1, 2], "labels": [-100, 2], "input_pos": [0, 1]}
    counts = count_tokens([padded_collate_sft([packed, shorter], PAD)], PAD, 6, Mesh())
    assert counts == TokenCounts(num_tokens=9, num_targets=6, sum_of_squares=9 + 16 + 4)


def test_to_device_moves_every_tensor() -> None:
    batch = {"tokens": torch.ones(2, 3), "mask": torch.ones(2, 3, 3, dtype=torch.bool)}
    moved = to_device(batch, torch.device("meta"))
    assert {name: tensor.device.type for name, tensor in moved.items()} == {"tokens": "meta", "mask": "meta"}


def test_counting_does_not_depend_on_the_split() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(1, 9, (6, 11))
    labels = torch.where(torch.rand(6, 11) < 0.5, tokens, -100)
    whole = count_tokens([{"tokens": tokens}], PAD, count_targets(labels), Mesh())
    num_targets = sum(map(count_targets, labels.split(4)))
    assert whole == count_tokens([{"tokens": part} for part in tokens.split(4)], PAD, num_targets, Mesh())
