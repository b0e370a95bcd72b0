"""What an objective logs beside its loss: means over a step, over its micro-batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor

from tune.utils.mesh import Mesh

__all__ = ["LossParts"]

# By name: a sum on the device, and what it is to be divided by.
Sums = dict[str, tuple[Tensor, int]]


class LossParts:
    """Sums that an objective adds up from micro-batch to micro-batch, until they are taken.

    Args:
        mesh: the processes of the run. Each of them adds under the same names.
    """

    targets = "tokens"

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sums: Sums = {}
        self._of_step: Sums = {}

    def add(self, **sums: tuple[Tensor, int]) -> None:
        """Add sums over a micro-batch, by name, each with what it is to be divided by, which may be 0."""
        for name, (total, count) in sums.items():
            before, count_before = self._sums.get(name, (0.0, 0))
            self._sums[name] = total.detach().float() + before, count + count_before

    def end_step(self) -> None:
        """Keep what was added since the last step as that of this step; nothing waits for the device."""
        self._of_step, self._sums = self._sums, {}

    def read_step(self) -> dict[str, float]:
        """Return the means of the last step, over all processes; each of them must call this."""
        return self._means(self._of_step)

    def read(self, prefix: str = "") -> dict[str, float]:
        """Return the means of what was added since the last time, and begin anew; each process must call this."""
        added, self._sums = self._sums, {}
        return {prefix + name: mean for name, mean in self._means(added).items()}

    def _means(self, sums: Sums) -> dict[str, float]:
        if not sums:
            return {}
        totals = self._mesh.sum_(torch.stack([total for total, _ in sums.values()])).tolist()
        counts = self._mesh.sums([count for _, count in sums.values()])
        return {name: total / max(count, 1) for name, total, count in zip(sums, totals, counts, strict=True)}
