"""Several datasets in given shares: how many examples of each make an epoch, and in what order they come."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from tune.errors import ConfigError

MixUntil = Literal["first_exhausted", "all_exhausted"]
# Examples of one epoch; a small weight beside a large dataset would make it endless.
_MAX_EXAMPLES = 100_000_000


@dataclass(frozen=True)
class Mixture:
    """The examples of several datasets, joined one after another, drawn in the shares of their weights.

    An epoch ends when the first dataset is exhausted (no example comes twice), or not before all are (the others begin
    again). What an epoch leaves of a dataset comes in the next: every example of it comes before any comes again.

    Args:
        sizes: examples of each dataset.
        weights: share of each among the examples, above 0; only their proportions matter.
        until: "first_exhausted" or "all_exhausted", named as `datasets.interleave_datasets` names them.

    Raises:
        ConfigError: an epoch would have no end.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    until: MixUntil = "first_exhausted"

    def __post_init__(self) -> None:
        if sum(self.counts) > _MAX_EXAMPLES:
            raise ConfigError(
                f"an epoch that mixes datasets of {', '.join(f'{size:,}' for size in self.sizes)} examples by the "
                f"weights {', '.join(f'{weight:g}' for weight in self.weights)} until all are exhausted has "
                f"{sum(self.counts):,} examples, more than {_MAX_EXAMPLES:,}: choose weights nearer to the sizes, or "
                "mix_until=first_exhausted"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each dataset in an epoch, at least one."""
        shares = [weight / sum(self.weights) for weight in self.weights]
        lengths = [size / share for size, share in zip(self.sizes, shares, strict=True)]
        if self.until == "first_exhausted":
            total = min(lengths)
            counts = [int(total * share + 1e-6) for share in shares]
        else:
            total = max(lengths)
            counts = [int(np.ceil(total * share - 1e-6)) for share in shares]
        return tuple(max(count, 1) for count in counts)

    def order(self, epoch: int, shuffle: bool, seed: int) -> list[int]:
        """Return the places of an epoch's examples in the joined datasets.

        Args:
            epoch: from 0.
            shuffle: draw each dataset's order anew each time it begins, and that of the epoch; otherwise each comes in
                its own order, evenly spread over the epoch.
            seed: of both.
        """
        starts = [0, *accumulate(self.sizes)]
        picked = [
            start + self._pick(which, epoch * count, count, shuffle, seed)
            for which, (start, count) in enumerate(zip(starts, self.counts))
        ]
        joined = np.concatenate(picked)
        if shuffle:
            places = _generator(seed, epoch, "epoch").permutation(len(joined))
        else:
            evenly = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
            places = np.argsort(evenly, kind="stable")
        order: list[int] = joined[places].tolist()
        return order

    def _pick(self, which: int, start: int, count: int, shuffle: bool, seed: int) -> np.ndarray:
        """Return `count` examples of a dataset from the `start`-th on, one pass over it after another."""
        size = self.sizes[which]
        begin, end = start % size, (start % size) + count
        number, taken = start // size, np.empty(0, dtype=np.int64)
        while len(taken) < end:
            taken = np.concatenate([taken, self._pass(which, number, count, shuffle, seed)])
            number += 1
        return taken[begin:end]

    def _pass(self, which: int, number: int, count: int, shuffle: bool, seed: int) -> np.ndarray:
        """Return the order in which a dataset is taken for the `number`-th time."""
        size = self.sizes[which]
        if not shuffle:
            return np.arange(size)
        order = np.empty(0, dtype=np.int64)
        # What ends one pass must not begin the next in the same epoch, so that each pass depends on those before it.
        for place in range(number + 1) if self.until == "first_exhausted" else (number,):
            late = order[len(order) - place * size % count :]
            order = _generator(seed, place, f"dataset {which}").permutation(size)
            is_late = np.isin(order, late)
            order = np.concatenate([order[~is_late], order[is_late]])
        return order

    def describe(self, names: Sequence[str], num_tokens: Sequence[int]) -> str:
        """Return the shares of an epoch in words.

        Args:
            names: of the datasets.
            num_tokens: of all examples of each.
        """
        counts = self.counts
        tokens = [
            count * total / size for count, total, size in zip(counts, num_tokens, self.sizes, strict=True)
        ]
        parts = [
            f"{name}: {count:,} of {size:,} ({count / sum(counts):.1%}, of the tokens {part / sum(tokens):.1%})"
            for name, count, size, part in zip(names, counts, self.sizes, tokens, strict=True)
        ]
        end = "the first is exhausted" if self.until == "first_exhausted" else "all are exhausted"
        return f"an epoch mixes {sum(counts):,} examples, until {end}: {'; '.join(parts)}"


def _generator(seed: int, number: int, what: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{number}/{what}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
