"""The loss of several steps as one number."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

__all__ = ["LossMean"]

# Losses that wait on the device to be read, each of which costs a few bytes there.
_MAX_WAITING = 64


class LossMean:
    """The mean loss per target over the steps since it was last read, each step weighed by its targets.

    Losses are read from the device when they are asked for, or are many: no step waits for them. Added up are they one
    by one in double precision, so that a run that is resumed in between comes to the very same number.

    A step whose loss is no number is left out, unless there is no other: it was not taken, and that was said.

    Attributes:
        num_steps: since it was last read.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self._total, self._num_targets, self._num_finite = 0.0, 0, 0
        self._only: float | None = None  # where there is one step alone, its loss without any rounding
        self._waiting: list[tuple[Tensor | float, int]] = []

    def add(self, loss: Tensor | float, num_targets: int) -> None:
        """Take in the loss per target of a step, and the number of its targets."""
        self.num_steps += 1
        self._waiting.append((loss.detach() if isinstance(loss, Tensor) else loss, num_targets))
        if len(self._waiting) >= _MAX_WAITING:
            self._read_waiting()

    def read(self) -> float:
        """Return the mean; NaN where there is none."""
        self._read_waiting()
        if self._only is not None:
            return self._only
        return self._total / self._num_targets if self._num_finite else math.nan

    def clear(self) -> None:
        """Begin anew."""
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """Return what has come together since it was last read."""
        self._read_waiting()
        return {
            "num_steps": self.num_steps,
            "total": self._total,
            "num_targets": self._num_targets,
            "num_finite": self._num_finite,
            "only": self._only,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the mean that gave this state would; {} begins anew."""
        self._waiting = []
        self.num_steps = int(state.get("num_steps", 0))
        self._total, self._num_targets = float(state.get("total", 0.0)), int(state.get("num_targets", 0))
        self._num_finite, self._only = int(state.get("num_finite", 0)), state.get("only")

    def _read_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for loss, num_targets in waiting:
            value = float(loss)
            if not math.isfinite(value):
                continue
            weight = max(num_targets, 1)
            self._num_finite += 1
            self._only = value if self._num_finite == 1 else None
            self._total += value * weight
            self._num_targets += weight
