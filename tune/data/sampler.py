"""The order of examples: shuffled by seed and epoch, and continued where a run stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from tune.data.mixture import Mixture
from tune.errors import DataError


class ResumableSampler(Sampler[int]):
    """Indices of one epoch after another, each example once per epoch, the same for the same seed.

    Iterating yields what is left of the current epoch for this rank, and moves nothing: a data loader may
    read ahead. The recipe calls `advance` with what was trained on, and `state_dict` then says exactly
    that. The position counts examples over all ranks, so a run may resume on another number of ranks.

    Ranks take turns in the order, and always get equally many indices: where an epoch does not come out even, the
    last ones get a filler, an index below zero. `~index` is an example of the right form, from which nothing
    is to be learnt (see `FilledDataset`).

    Args:
        num_examples: length of the dataset.
        shuffle: draw a new order each epoch; otherwise keep the dataset's.
        seed: of the shuffle.
        rank, world_size: this process and how many share the epoch.
        mixture: decides instead which examples of several datasets make an epoch, some of them perhaps more than once.
    """

    def __init__(
        self,
        num_examples: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        self.num_examples = num_examples if mixture is None else sum(mixture.counts)
        self.mixture = mixture
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        left = self._order()[self.position :]
        missing = -len(left) % self.world_size
        return iter((left + [~index for index in left[:1] * missing])[self.rank :: self.world_size])

    def __len__(self) -> int:
        """Number of indices left for each rank in the current epoch."""
        return -(-(self.num_examples - self.position) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of `epoch`; does nothing if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def advance(self, num_examples: int) -> None:
        """Record that every rank has trained on `num_examples` further examples of this epoch."""
        self.position = min(self.position + num_examples * self.world_size, self.num_examples)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data, to be saved with a step."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_examples": self.num_examples,
            "mixture": self._describe_mixture(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a saved place.

        Raises:
            DataError: as `find_position`.
        """
        self.position = self.find_position(state)
        self.epoch = state["epoch"]

    def find_position(self, state: dict[str, Any]) -> int:
        """Return how many examples of its epoch a saved place has behind it; at the epoch's end other data may follow.

        Raises:
            DataError: it is in the middle of an epoch, and the data or its order is not what it was saved with.
        """
        if state["position"] >= state["num_examples"]:
            return self.num_examples
        now = self.state_dict()
        for key in ("num_examples", "shuffle", "seed", "mixture"):
            was = state.get(key, "")  # steps of older versions know of no mixture
            if was != now[key]:
                raise DataError(
                    f"cannot resume in the middle of the data: {key} was {was} when the step was saved "
                    f"and is {now[key]} now, so other examples would follow. "
                    f"Set it back to {was}, or go on from a step at an epoch's end, or start a new run from "
                    "the saved weights"
                )
        return int(state["position"])

    def _describe_mixture(self) -> str:
        mixture = self.mixture
        return "" if mixture is None else f"{mixture.counts} of {mixture.sizes}"

    def _order(self) -> list[int]:
        if self.mixture is not None:
            return self.mixture.order(self.epoch, self.shuffle, self.seed)
        if not self.shuffle:
            return list(range(self.num_examples))
        # A hash keeps (seed 0, epoch 1) apart from (seed 1, epoch 0), which a sum would not.
        digest = hashlib.blake2b(f"{self.seed}/{self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        order: list[int] = torch.randperm(self.num_examples, generator=generator).tolist()
        return order


class FilledDataset(Dataset[dict[str, Any]]):
    """A dataset that also answers to the fillers of a `ResumableSampler`: with padding, and nothing to learn from.

    Args:
        examples: with `tokens` and `labels`.
        padding_idx: the token that pads.
        ignore_idx: the label that is not trained on.

    Attributes:
        reference: what a reference makes of the answers in each example, which then has it as `reference`.
    """

    def __init__(self, examples: Any, padding_idx: int, ignore_idx: int) -> None:
        self._examples = examples
        self._padding_idx = padding_idx
        self._ignore_idx = ignore_idx
        self.reference: Sequence[Sequence[float]] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index if index >= 0 else ~index
        example: dict[str, Any] = self._examples[place]
        if self.reference is not None:
            example = {**example, "reference": self.reference[place]}
        if index >= 0:
            return example
        filler = dict(example)
        for name, value in (("tokens", self._padding_idx), ("labels", self._ignore_idx)):
            old = filler[name]
            filler[name] = (
                torch.full_like(old, value) if isinstance(old, torch.Tensor) else [value] * len(old)
            )
        return filler
