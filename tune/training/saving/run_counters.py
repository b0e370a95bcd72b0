"""Where a run stands, beside the objects that keep a state of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["RunCounters"]


@dataclass
class RunCounters:
    """What a loop counts and remembers; saved with each step.

    Args:
        step: optimizer steps taken.
        epoch: passes over the data begun before this one.
        step_in_epoch: optimizer steps of this pass.
        num_tokens: that went through the model, without padding.
        num_targets: those whose next token was trained on.
        loss: as last read.
        val_loss, val_step: the last validation, and the step it is of.
        best_val_loss, best_step: among saved steps.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    loss: float = float("nan")
    val_loss: float | None = None
    val_step: int = -1
    best_val_loss: float = float("inf")
    best_step: int | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; does nothing if that epoch is under way."""
        if epoch != self.epoch:
            self.epoch, self.step_in_epoch = epoch, 0

    def undo_step(self) -> None:
        """Take back the step that was begun and could not be taken."""
        self.step -= 1
        self.step_in_epoch -= 1

    def is_due(self, every_n_steps: int | None, otherwise: bool = False) -> bool:
        """Tell whether something that happens every so many steps happens after this one; `otherwise` for None."""
        return otherwise if every_n_steps is None else self.step % every_n_steps == 0

    def note_validation(self, val_loss: float) -> None:
        """Remember the validation loss of the weights as they are."""
        self.val_loss, self.val_step = val_loss, self.step

    def note_saving(self) -> None:
        """Remember this step as the best one, if it is; only a loss of these very weights counts."""
        if self.val_loss is not None and self.val_step == self.step and self.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step = self.val_loss, self.step

    def state(self, **facts: Any) -> dict[str, Any]:
        """Return all counters, and further facts, to be saved with a step."""
        return {**vars(self), **facts}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take every counter from what `state` returned."""
        for field in fields(self):
            setattr(self, field.name, saved[field.name])
