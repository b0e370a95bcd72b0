"""The order of examples: shuffled by seed and epoch, and continued where a run stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from tune.errors import DataError


class ResumableSampler(Sampler[int]):
    """Indices of one epoch after another, each example once per epoch, the same for the same seed.

    Iterating yields what is left of the current epoch for this rank, and moves nothing: a data loader may
    read ahead. The recipe calls `advance` with what was trained on, and `state_dict` then says exactly
    that. The position counts examples over all ranks, so a run may resume on another number of ranks.

    Args:
        num_examples: length of the dataset.
        shuffle: draw a new order each epoch; otherwise keep the dataset's.
        seed: of the shuffle.
        rank, world_size: this process and how many share the epoch. Ranks always get equally many
            examples: the last `num_examples % world_size` of an epoch's order are left out.

    Raises:
        DataError: there are fewer examples than ranks.
    """

    def __init__(
        self,
        num_examples: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_examples < world_size:
            raise DataError(
                f"the dataset has {num_examples} examples for {world_size} processes; each needs at least one"
            )
        self.num_examples = num_examples
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        left = self._order()[self.position :]
        num_even = len(left) - len(left) % self.world_size
        return iter(left[self.rank : num_even : self.world_size])

    def __len__(self) -> int:
        """Number of examples left for this rank in the current epoch."""
        return (self.num_examples - self.position) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of `epoch`; does nothing if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def advance(self, num_examples: int) -> None:
        """Records that every rank has trained on `num_examples` further examples of this epoch."""
        self.position = min(self.position + num_examples * self.world_size, self.num_examples)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the data, to be saved with a step."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_examples": self.num_examples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a saved place.

        Raises:
            DataError: the data or its order is not what the place was saved with.
        """
        for key in ("num_examples", "shuffle", "seed"):
            if state[key] != getattr(self, key):
                raise DataError(
                    f"cannot resume in the middle of the data: {key} was {state[key]} when the step was saved "
                    f"and is {getattr(self, key)} now, so other examples would follow. "
                    f"Set it back to {state[key]}, or start a new run from the saved weights"
                )
        self.epoch = state["epoch"]
        self.position = state["position"]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_examples))
        # A hash keeps (seed 0, epoch 1) apart from (seed 1, epoch 0), which a sum would not.
        digest = hashlib.blake2b(f"{self.seed}/{self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        order: list[int] = torch.randperm(self.num_examples, generator=generator).tolist()
        return order
