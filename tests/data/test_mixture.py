"""Datasets mixed by weight: how many examples of each an epoch has, which, in what order, and after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from tune.data import ResumableSampler
from tune.data.mixture import Mixture
from tune.errors import ConfigError, DataError

SIZES = (30, 7, 100)
WEIGHTS = (2.0, 1.0, 7.0)


def sources_of(order: list[int]) -> Counter[int]:
    return Counter(0 if place < 30 else 1 if place < 37 else 2 for place in order)


@pytest.mark.parametrize(
    ("sizes", "weights", "until", "counts"),
    [
        ((30, 7, 100), (2, 1, 7), "first_exhausted", (14, 7, 49)),
        ((30, 7, 100), (0.2, 0.1, 0.7), "first_exhausted", (14, 7, 49)),
        ((30, 7, 100), (2, 1, 7), "all_exhausted", (30, 15, 105)),
        ((10, 10), (1, 3), "first_exhausted", (3, 10)),
        ((10, 10), (1, 3), "all_exhausted", (10, 30)),
        ((5, 1000), (1000, 1), "first_exhausted", (5, 1)),
    ],
)
def test_an_epoch_has_the_shares_that_were_asked_for(sizes, weights, until, counts):
    assert Mixture(sizes, weights, until).counts == counts


def test_first_exhausted_takes_nothing_twice_and_then_the_rest():
    mixture = Mixture(SIZES, WEIGHTS)
    epochs = [mixture.order(epoch, True, seed=3) for epoch in range(3)]
    for order in epochs:
        assert len(set(order)) == len(order) == 70
        assert sources_of(order) == {0: 14, 1: 7, 2: 49}
        assert {place for place in order if 30 <= place < 37} == set(range(30, 37))
    # What an epoch leaves comes in the next ones, before anything comes again.
    assert len({place for order in epochs[:2] for place in order}) == 28 + 7 + 98
    assert len({place for order in epochs for place in order}) == sum(SIZES)


def test_all_exhausted_takes_everything_and_some_again():
    order = Mixture(SIZES, WEIGHTS, "all_exhausted").order(0, True, seed=3)
    assert set(order) == set(range(sum(SIZES)))
    assert sources_of(order) == {0: 30, 1: 15, 2: 105}
    assert max(Counter(place for place in order if 30 <= place < 37).values()) == 3


def test_the_order_follows_from_seed_and_epoch():
    mixture = Mixture(SIZES, WEIGHTS)
    assert mixture.order(1, True, 5) == mixture.order(1, True, 5)
    assert mixture.order(1, True, 5) != mixture.order(0, True, 5) != mixture.order(0, True, 1)


def test_unshuffled_each_keeps_its_order_and_is_spread_evenly():
    order = Mixture((6, 3), (2, 1)).order(0, False, seed=9)
    assert order == [0, 6, 1, 2, 7, 3, 4, 8, 5]
    assert Mixture((2, 6), (1, 1)).order(1, False, seed=9) == [0, 4, 1, 5]


def test_a_resumed_sampler_goes_on_in_the_mixture():
    mixture = Mixture(SIZES, WEIGHTS)
    sampler = ResumableSampler(sum(SIZES), seed=4, mixture=mixture)
    sampler.set_epoch(1)
    whole = list(sampler)
    assert len(sampler) == len(whole) == 70
    sampler.advance(23)
    resumed = ResumableSampler(sum(SIZES), seed=4, mixture=mixture)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == whole[23:]
    with pytest.raises(DataError, match="mixture was"):
        ResumableSampler(70, seed=4).load_state_dict(sampler.state_dict())
    old = {key: value for key, value in ResumableSampler(9).state_dict().items() if key != "mixture"}
    ResumableSampler(9).load_state_dict(old | {"position": 3})  # a step of an older version


def test_ranks_share_the_order():
    mixture = Mixture(SIZES, WEIGHTS)
    samplers = [ResumableSampler(137, seed=4, rank=rank, world_size=3, mixture=mixture) for rank in range(3)]
    taken = [list(sampler) for sampler in samplers]
    assert [len(part) for part in taken] == [24, 24, 24]
    joined = [place for turn in zip(*taken) for place in turn]
    assert joined[:70] == mixture.order(0, True, 4)
    assert all(place < 0 for place in joined[70:])


def test_an_epoch_without_end_is_refused():
    with pytest.raises(ConfigError, match="mix_until=first_exhausted"):
        Mixture((1_000_000, 10), (1e-3, 1), "all_exhausted")
