"""How far a mean over examples can be trusted, and the difference of two models' means over the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tune.errors import DataError

__all__ = ["Difference", "mean_interval", "paired_difference"]

# Resampled places that stand at once, and those of all resamples together.
_MAX_PLACES, _MAX_DRAWN = 4_000_000, 200_000_000
_FEWEST_RESAMPLES = 1000
_Z = 1.959963984540054  # 97.5 in 100 of a normal distribution lie below


@dataclass(frozen=True)
class Difference:
    """How a mean over examples has changed.

    Args:
        difference: the second mean less the first.
        low, high: the interval that holds the difference of 95 in 100 resamples.
        wins, losses, ties: examples on which the second is better, worse, or the same.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero; one example has no interval."""
        return self.wins + self.losses + self.ties > 1 and (self.low > 0.0 or self.high < 0.0)


def mean_interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> tuple[float, float] | None:
    """Return the 95% interval of a mean over examples that stand for others like them; None for one example's mean.

    Where each value is 0 or 1 it is the Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212), which
    neither ends in a point where all are alike nor leaves 0 to 1. Else it is the percentile interval of the bootstrap
    (Efron and Tibshirani 1993, 13.3).

    Args:
        values: what the examples have: a score, or a loss per target. [n]
        weights: what each counts for, such as its targets; None: all the same. [n]
        seed: of the draw.
        num_resamples: how often all examples are drawn; fewer where there are more than 20,000 of them.

    Raises:
        DataError: there are no examples.
    """
    if not len(values):
        raise DataError("no examples have no mean")
    table = np.asarray(values, np.float64)  # [n]
    if weights is None and np.isin(table, (0.0, 1.0)).all():
        n, share = len(table), float(table.mean())
        middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * (share * (1 - share) / n + _Z**2 / (4 * n**2)) ** 0.5
        # At the ends the sum is 0 or 1 but for rounding.
        return (0.0 if share == 0.0 else middle - half), (1.0 if share == 1.0 else middle + half)
    if len(table) == 1:
        return None
    counts = np.ones(len(table)) if weights is None else np.asarray(weights, np.float64)
    return _percentiles(
        np.stack([table * counts, counts]), lambda sums: sums[0] / sums[1], seed, num_resamples
    )


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    before_weights: Sequence[float] | None = None,
    after_weights: Sequence[float] | None = None,
    *,
    lower_is_better: bool = False,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> Difference:
    """Return the difference of two means over the same examples, with its percentile interval by the paired bootstrap.

    Examples are drawn with replacement, the same for both models (Efron and Tibshirani 1993, 13.3; W04-3250).

    Args:
        before, after: what the two models have on each example: a score, or a loss per target. [n] each
        before_weights, after_weights: what each counts for, such as its targets; None: all the same. [n] each
        lower_is_better: as of a loss.
        seed: of the draw.
        num_resamples: how often all examples are drawn; fewer where there are more than 20,000 of them.

    Raises:
        DataError: there are no examples, or not the same.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)  # [n], [n]
    if not len(first) or first.shape != second.shape:
        raise DataError(f"{len(first)} and {len(second)} examples cannot be compared pair by pair")
    ones = np.ones(len(first))
    weights = [
        ones if each is None else np.asarray(each, np.float64) for each in (before_weights, after_weights)
    ]
    table = np.stack([first * weights[0], second * weights[1], *weights])  # [4, n]
    low, high = _percentiles(table, _means_apart, seed, num_resamples)
    gains = first - second if lower_is_better else second - first
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    difference = float(_means_apart(table.sum(-1)))
    return Difference(difference, low, high, wins, losses, len(first) - wins - losses)


def _percentiles(
    table: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int, num_resamples: int
) -> tuple[float, float]:
    """Return where 2.5 and 97.5 in 100 resamples of a table [k, n] lie: of a statistic [r] of their sums [k, r]."""
    rng = np.random.default_rng(seed)
    number = table.shape[1]
    num_resamples = min(num_resamples, max(_FEWEST_RESAMPLES, _MAX_DRAWN // number))
    found = []
    size = max(1, _MAX_PLACES // number)
    for start in range(0, num_resamples, size):
        drawn = rng.integers(0, number, (min(size, num_resamples - start), number))  # [r, n]
        found.append(statistic(table[:, drawn].sum(-1)))  # [r]
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


def _means_apart(sums: np.ndarray) -> np.ndarray:
    """Return the second weighted mean less the first, of sums [4, ...]."""
    difference: np.ndarray = sums[1] / sums[3] - sums[0] / sums[2]
    return difference
