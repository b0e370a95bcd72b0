"""The paired bootstrap: known where theory knows, and honest about what it cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from tune.errors import DataError
from tune.evaluation import mean_interval, paired_difference
from tune.evaluation.tables import verdicts


def test_the_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0.3, 2.0, 800)
    shared = rng.normal(0, 50, 800)  # what examples have in common makes no difference less certain
    found = paired_difference(shared.tolist(), (shared + noise).tolist(), seed=1)
    error = noise.std() / 800**0.5
    assert found.difference == pytest.approx(noise.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (found.low + found.high) / 2 == pytest.approx(noise.mean(), abs=0.1 * error)


def test_a_difference_of_one_example_is_not_clear() -> None:
    before, after = [0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0, 1.0]
    found = paired_difference(before, after)
    assert (found.wins, found.losses, found.ties) == (1, 0, 4)
    assert found.low == 0.0
    assert not found.is_clear
    assert paired_difference([0.0] * 9, [1.0] * 9).is_clear


def test_losses_are_weighed_by_their_targets() -> None:
    before, after, weights = [2.0, 1.0, 4.0], [1.0, 3.0, 4.0], [1, 10, 100]
    found = paired_difference(before, after, weights, weights, lower_is_better=True)
    assert found.difference == pytest.approx((1 + 30 + 400) / 111 - (2 + 10 + 400) / 111)
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)


def test_the_seed_decides_and_pieces_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(17).tolist(), rng.random(17).tolist()
    first = paired_difference(before, after, seed=5)
    assert first == paired_difference(before, after, seed=5)
    assert first.low != paired_difference(before, after, seed=6).low
    monkeypatch.setattr("tune.evaluation.bootstrap._MAX_PLACES", 17 * 3)
    assert first == paired_difference(before, after, seed=5)


def test_examples_must_be_the_same() -> None:
    with pytest.raises(DataError, match="2 and 3 examples"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0])
    with pytest.raises(DataError, match="0 and 0 examples"):
        paired_difference([], [])


def test_an_interval_of_right_and_wrong_is_wilsons() -> None:
    # Of Newcombe 1998 (Statist. Med. 17, 857-872), table I, method 3.
    for right, number, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        values = [1.0] * right + [0.0] * (number - right)
        assert mean_interval(values) == pytest.approx((low, high), abs=5e-5)
    assert mean_interval([1.0] * 20) == (pytest.approx(0.8389, abs=5e-5), 1.0)
    assert mean_interval([1.0]) == (pytest.approx(0.2065, abs=5e-5), 1.0)


def test_an_interval_of_other_scores_is_as_theory_says() -> None:
    values = np.random.default_rng(2).normal(0.4, 2.0, 900)
    low, high = mean_interval(values.tolist(), seed=3)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 900**0.5, rel=0.05)
    assert low < values.mean() < high
    # Losses count as often as they have targets: the heavy one decides.
    low, high = mean_interval([1.0, 5.0, 1.1], [1, 1000, 1])
    assert (low, high) == (pytest.approx(1.05, abs=0.06), 5.0)
    assert mean_interval([0.3]) is None
    assert mean_interval([1.0], [7]) is None  # a loss of 1, which is no share
    with pytest.raises(DataError):
        mean_interval([])


def test_one_pair_is_never_clear() -> None:
    assert not paired_difference([0.0], [1.0]).is_clear


def test_what_may_be_chance_is_said_of_one_example_or_many() -> None:
    for number, said in ((1, "so 1 example does not tell"), (1200, "so 1,200 examples do not tell")):
        (verdict,) = verdicts({"differences": {"number": {"is_clear": False, "num_pairs": number}}})
        assert said in verdict
