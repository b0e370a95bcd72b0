"""ResumableSampler: each example once, the same order for a seed, continued where it stopped."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from tune.data import FilledDataset, ResumableSampler
from tune.errors import DataError


def test_each_epoch_has_each_example_once_in_its_own_order():
    sampler = ResumableSampler(23, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(sampler) == 23
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_seeds_and_epochs_do_not_mirror_each_other():
    def order(seed, epoch):
        sampler = ResumableSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) != order(1, 0)
    assert order(3, 2) == order(3, 2)


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(ResumableSampler(4, shuffle=False)) == [0, 1, 2, 3]


@pytest.mark.parametrize("consumed", [0, 1, 12, 28, 29])
def test_a_resumed_sampler_yields_exactly_the_rest(consumed):
    whole = list(ResumableSampler(29, seed=1))
    first = ResumableSampler(29, seed=1)
    iterator = iter(first)
    seen = [next(iterator) for _ in range(consumed)]
    first.advance(consumed)
    resumed = ResumableSampler(29, seed=1)
    resumed.load_state_dict(first.state_dict())
    assert len(resumed) == 29 - consumed
    assert seen + list(resumed) == whole
    # The next epoch is whole again.
    resumed.set_epoch(resumed.epoch)
    assert len(resumed) == 29 - consumed
    resumed.set_epoch(resumed.epoch + 1)
    assert len(list(resumed)) == 29


def test_a_loader_that_reads_ahead_moves_nothing():
    sampler = ResumableSampler(31, seed=2)
    loader = DataLoader(list(range(31)), batch_size=3, sampler=sampler, num_workers=1, prefetch_factor=4)
    iterator = iter(loader)
    seen = [*next(iterator).tolist(), *next(iterator).tolist()]
    assert sampler.state_dict()["position"] == 0
    sampler.advance(6)
    assert seen + list(sampler) == list(ResumableSampler(31, seed=2))


@pytest.mark.parametrize("world_size", [2, 4, 23, 30])
def test_ranks_share_an_epoch_evenly(world_size):
    whole = list(ResumableSampler(23, seed=7))
    samplers = [ResumableSampler(23, seed=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    ranks = [list(sampler) for sampler in samplers]
    assert {len(rank) for rank in ranks} == {len(sampler) for sampler in samplers} == {-(-23 // world_size)}
    # Taken in turn, the ranks give the order of a single process; what is missing then is filled up.
    turns = [index for step in zip(*ranks) for index in step]
    assert turns[:23] == whole
    assert all(index < 0 for index in turns[23:])


def test_a_filler_has_nothing_to_learn_from():
    examples = [{"tokens": [5, 6, 7], "labels": [-100, 6, 7], "input_pos": [0, 1, 2]}]
    filled = FilledDataset(examples, padding_idx=3, ignore_idx=-100)
    assert filled[0] == examples[0]
    assert filled[~0] == {"tokens": [3, 3, 3], "labels": [-100] * 3, "input_pos": [0, 1, 2]}
    assert len(filled) == 1


def test_a_run_may_resume_on_another_number_of_ranks():
    four = [ResumableSampler(60, seed=7, rank=rank, world_size=4) for rank in range(4)]
    seen = {index for sampler in four for index in list(sampler)[:6]}
    for sampler in four:
        sampler.advance(6)
    two = [ResumableSampler(60, seed=7, rank=rank, world_size=2) for rank in range(2)]
    for sampler in two:
        sampler.load_state_dict(four[3].state_dict())
    rest = [index for sampler in two for index in sampler]
    assert len(rest) == 36
    assert seen.isdisjoint(rest)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"num_examples": 12}, "num_examples was 11 .* 12 now"),
        ({"num_examples": 11, "seed": 4}, "seed was 3 .* 4 now"),
        ({"num_examples": 11, "shuffle": False}, "shuffle was True"),
    ],
)
def test_a_place_in_other_data_is_refused(other, says):
    state = ResumableSampler(11, seed=3).state_dict()
    with pytest.raises(DataError, match=says):
        ResumableSampler(**{"seed": 3, **other}).load_state_dict(state)
