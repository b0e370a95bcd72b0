"""Is one model better than another on the same examples: the difference, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tune.errors import DataError

__all__ = ["Difference", "paired_difference"]

# Resampled places that stand at once.
_MAX_PLACES = 4_000_000


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
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


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
        num_resamples: how often all examples are drawn.

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
    rng = np.random.default_rng(seed)
    found = []
    size = max(1, _MAX_PLACES // len(first))
    for start in range(0, num_resamples, size):
        drawn = rng.integers(0, len(first), (min(size, num_resamples - start), len(first)))  # [r, n]
        found.append(_means_apart(table[:, drawn].sum(-1)))  # [r]
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    gains = first - second if lower_is_better else second - first
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    difference = float(_means_apart(table.sum(-1)))
    return Difference(difference, float(low), float(high), wins, losses, len(first) - wins - losses)


def _means_apart(sums: np.ndarray) -> np.ndarray:
    """Return the second weighted mean less the first, of sums [4, ...]."""
    difference: np.ndarray = sums[1] / sums[3] - sums[0] / sums[2]
    return difference
