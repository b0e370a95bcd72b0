"""Counting what an optimizer step holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from tune.config import Component
from tune.data import padded_collate_sft, shift_labels
from tune.training import count_targets, count_tokens, group_micro_batches, to_device
from tune.training.batches import TokenCounts, collate_with_lengths
from tune.training.loading import build_loader
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


# Where the token that pads is also the one that ends a text (2), and stands within one.
ENDED = [
    {"tokens": [1, 2, 6, 7, 2], "labels": [-100, -100, 6, 7, -100]},
    {"tokens": [2, 9, 2], "labels": [2, 9, 2]},
    {"tokens": [1, 4, 4, 2], "labels": [-100, -100, 4, 2]},
]
PACKED = [
    {
        "tokens": [1, 5, 2, 1, 7, 8, 2],
        "labels": [-100, 5, 2, -100, 7, 8, -100],
        "input_pos": [0, 1, 2, 0, 1, 2, 3],
    },
    {"tokens": [1, 2], "labels": [-100, 2], "input_pos": [0, 1]},
]


def left_padded(batch: Sequence[Mapping[str, Any]], padding_idx: int) -> dict[str, torch.Tensor]:
    """Of a user's own: padding on the left, at most four tokens of each row."""
    rows = [row["tokens"][:4] for row in batch]
    labels = [row["labels"][:4] for row in batch]
    return {
        "tokens": torch.tensor([[padding_idx] * (4 - len(row)) + row for row in rows]),
        "labels": torch.tensor([[-100] * (4 - len(row)) + row for row in labels]),
    }


@pytest.mark.parametrize(
    ("rows", "lengths"), [(ENDED, [5, 3, 4]), (PACKED, [3, 4, 2])], ids=["padded", "packed"]
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_token_that_ends_texts_and_pads(rows, lengths: list[int], world_size: int) -> None:
    counts = []
    for rank in range(world_size):  # the last row of one is only there to make them even
        loader = build_loader(
            rows,
            Component("tune.data.padded_collate_sft"),
            batch_size=2,
            padding_idx=2,
            shuffle=False,
            seed=0,
            mesh=Mesh(rank=rank, world_size=world_size, shard_dim=world_size),
        )
        counts += [count_tokens([batch], 2, 0, Mesh()) for batch in loader]
    assert sum(count.num_tokens for count in counts) == sum(lengths)
    assert sum(count.sum_of_squares for count in counts) == sum(length**2 for length in lengths)


def test_a_collate_function_of_ones_own_counts_too() -> None:
    batch = collate_with_lengths(partial(left_padded, padding_idx=2), 2, ENDED)
    assert count_tokens([batch], 2, 0, Mesh()) == TokenCounts(11, 0, 16 + 9 + 16)
    assert collate_with_lengths(len, 2, ENDED) == 3


def test_without_lengths_what_is_trained_on_is_no_padding() -> None:
    counts = count_tokens([padded_collate_sft(ENDED[1:], 2)], 2, 0, Mesh())
    assert counts == TokenCounts(7, 0, 9 + 16)


def test_lengths_of_ones_own_are_left_to_their_owner() -> None:
    own = collate_with_lengths(lambda examples: {**left_padded(examples, 2), "lengths": "mine"}, 2, ENDED)
    assert own["lengths"] == "mine"
    assert count_tokens([own], 2, 0, Mesh()).num_tokens == 11
