"""One run at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from tune.errors import CheckpointError, TrainingError
from tune.training.distributed.processes import from_rank_zero
from tune.training.saving.choosing import choose_step_to_resume, set_aside_later_steps
from tune.training.saving.saved_steps import SavedStep, remove_unfinished_steps
from tune.training.saving.shared_folder import require_shared_folder
from tune.utils import get_logger

__all__ = ["RunLock", "claim_output_dir"]


class NamesStep(Protocol):
    """What is read of a checkpointer: which step of which folder a run goes on from."""

    output_dir: Path
    recipe_checkpoint: str | None
    resume_from_checkpoint: bool


def claim_output_dir(
    output_dir: Path, opened: ExitStack, *, resume: bool, checkpointer: NamesStep | None = None
) -> SavedStep | None:
    """Hold an output directory for this run, clear away what a killed one left, and return the step to go on from.

    Every process must call this; the first one does it.

    Args:
        output_dir: where the run writes.
        opened: lets go of the directory when it is closed.
        resume: go on from a saved step, the newest one if none is named.
        checkpointer: may ask for that too, and name the step; where it would write does not matter.

    Raises:
        TrainingError: another run holds it.
        CheckpointError: it cannot be written, some process does not see it, or there is no such step.
    """

    name = checkpointer.recipe_checkpoint if checkpointer else None
    resume = resume or bool(checkpointer and checkpointer.resume_from_checkpoint)
    if checkpointer and checkpointer.output_dir != output_dir:
        get_logger().info(f"checkpointer.output_dir is not used: steps go to output_dir, {output_dir}")

    def claim() -> SavedStep | None:
        opened.callback(RunLock(output_dir).release)
        try:
            remove_unfinished_steps(output_dir)
            chosen = choose_step_to_resume(output_dir, resume, name)
            if chosen is not None and name is not None:
                set_aside_later_steps(chosen)
            return chosen
        except OSError as error:
            raise CheckpointError(
                f"output_dir {output_dir} cannot be read: {error.strerror}. Mend it or choose another output_dir."
            ) from error

    step = from_rank_zero(claim)
    require_shared_folder(output_dir)
    return step


class RunLock:
    """Holds an output directory, created if missing, until `release` or the end of the process.

    The kernel lets go of the lock however the process ends, so a killed run never blocks the next one.

    Raises:
        TrainingError: another process holds it.
        CheckpointError: the directory cannot be created or written.
    """

    def __init__(self, output_dir: Path) -> None:
        path = output_dir / ".lock"
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"cannot write in output_dir {output_dir}: {error.strerror}. Choose another output_dir."
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise TrainingError(
                f"another run is writing to {output_dir}. Wait for its end or choose another output_dir."
            ) from error
        except OSError:
            # Some network file systems have no locks; the run is no worse off than without this class.
            pass
        # A process that loads data would hold the lock on, for seconds after the run was killed.
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Let another run have the directory."""
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
