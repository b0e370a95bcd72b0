"""What an objective logs beside its loss: means since the line before, over micro-batches, steps and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tune.utils.mesh import Mesh

__all__ = ["LossParts"]


class LossParts:
    """Sums that an objective adds up from micro-batch to micro-batch; their means are those of every step of a line.

    Each mean is weighed as the loss is: a step counts by what it was divided by. A step of which some sum is no number
    is left out, as its loss is. The sums are of all processes, and a state: a resumed run logs what an undisturbed one
    does.

    Args:
        mesh: the processes of the run. Each of them adds under the same names.
    """

    targets = "tokens"

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sums: dict[str, Tensor] = {}  # of this process, since the last step: a total and its count
        self._line: dict[str, Tensor] = {}  # of all processes, since the last line

    @torch.no_grad()
    def add(self, **sums: tuple[Tensor, Tensor | int]) -> None:
        """Add sums over a micro-batch, by name, each with what it is to be divided by, which may be 0."""
        for name, (total, count) in sums.items():
            self._sums[name] = self._numbers(total, count) + self._sums.get(name, 0.0)

    def end_step(self) -> None:
        """Take what was added since the last step into the line; nothing waits for the device. Every process calls."""
        step, self._sums = self._over_processes(self._sums), {}
        if step:
            is_finite = torch.stack(list(step.values())).isfinite().all()
            for name, pair in step.items():
                self._line[name] = torch.where(is_finite, pair, 0.0) + self._line.get(name, 0.0)

    def read_line(self, clear: bool = True) -> dict[str, float]:
        """Return the means since the line before, the same on every process.

        Args:
            clear: begin the next line; without, what it takes the mean of is left as it was.
        """
        means = self._means(self._line)
        if clear:
            self._line = {}
        return means

    def read(self, prefix: str = "") -> dict[str, float]:
        """Return the means of what was added since the last step, and forget it; each process must call this."""
        added, self._sums = self._sums, {}
        return {prefix + name: mean for name, mean in self._means(self._over_processes(added)).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what has come together since the last line."""
        return {name: pair.tolist() for name, pair in self._line.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the parts that gave this state would."""
        self._line = {name: self._numbers(*pair) for name, pair in state.items()}

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        if not sums:
            return {}
        return dict(zip(sums, self._mesh.sum_(torch.stack(list(sums.values()))).unbind(), strict=True))

    def _numbers(self, *numbers: Tensor | float) -> Tensor:
        # Tokens of many steps are more than fp32 can count.
        dtype = torch.float32 if self._mesh.device.type == "mps" else torch.float64
        return torch.stack([torch.as_tensor(n, dtype=dtype, device=self._mesh.device) for n in numbers])

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        if not sums:
            return {}
        pairs = torch.stack(list(sums.values())).tolist()
        return {name: total / count for name, (total, count) in zip(sums, pairs, strict=True) if count}
