"""What was predicted of a run's memory, beside what its first steps took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tune.training.memory.available import GIB
from tune.training.memory.plan import MemoryPlan
from tune.training.saving.run_record import RunRecord
from tune.utils import get_logger

__all__ = ["MemoryCheck"]

# The optimizer's state is made in the first step; the second one has everything.
NUM_STEPS = 3


class MemoryCheck:
    """Says once, after a few steps, how near the plan was, for micro-batches as large as there have been.

    Args:
        plan: made before the weights are read; None compares nothing.
        record: of the run, which takes note of both.
    """

    def __init__(self, plan: MemoryPlan | None, record: RunRecord) -> None:
        self._plan = plan
        self._record = record
        self._num_steps = 0
        self._rows = self._tokens = 0
        if plan is not None:
            parts = {name: [size / GIB for size in sizes] for name, sizes in plan.prediction.parts.items()}
            available = None if plan.available is None else plan.available / GIB
            memory = {"predicted_gib": plan.peak / GIB, "available_gib": available, "parts_gib": parts}
            record.note(memory={**memory, "fullest": plan.prediction.fullest, "device": str(plan.device)})

    def after_step(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Take note of the micro-batches `tokens` [b, s] of an optimizer step that has been taken."""
        self._num_steps += 1
        if self._num_steps > NUM_STEPS or self._plan is None:
            return
        for batch in micro_batches:
            rows, tokens = batch["tokens"].shape
            if rows * tokens > self._rows * self._tokens:
                self._rows, self._tokens = rows, tokens
        if self._num_steps == NUM_STEPS:
            seen = self._rows, self._tokens
            measured, expected = self._plan.measure(), self._plan.predict_for(seen)
            get_logger().info(self._plan.compare(measured, seen=seen))
            self._record.note(
                memory={"measured_gib": measured / GIB, "predicted_for_measured_gib": expected / GIB}
            )
