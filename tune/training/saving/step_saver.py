"""Saving the steps of a run: all its processes together, at once or while training goes on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tune.errors import CheckpointError
from tune.training.distributed.processes import from_rank_zero, open_host_group
from tune.training.distributed.sharded_model import (
    HostShards,
    copy_to_host,
    is_cut,
    reshard,
    write_whole,
)
from tune.training.saving.run_state import RunSnapshot, Stateful, capture_run_state, write_run_state
from tune.training.saving.saved_steps import (
    StagedStep,
    explain_failed_save,
    link_steps,
    prune_saved_steps,
    step_name,
)
from tune.utils import get_logger, is_rank_zero
from tune.utils.lost_connection import is_lost_connection

__all__ = ["StepSaver"]

WriteModel = Callable[[Any, Path], None]


class StepSaver:
    """Writes saved steps; every process of the run has one, and calls its methods together with the others.

    The first process writes the model in its common layout, each process its part of the optimizer's state; the first
    then flushes everything, writes the manifest and renames. What fails on one of them is raised on all.

    Saved in the background, a step costs training the time of a copy to host memory. There is room for one such copy:
    the next step waits for the one before. As a context, it is left when the last step is written.

    Args:
        output_dir: where the steps go.
        device: whose random state belongs to a step.
        keep_last_n: older steps are deleted beyond this many, except the best; None keeps all.
        in_background: training goes on while a step is written.
    """

    def __init__(
        self, output_dir: Path, device: torch.device, *, keep_last_n: int | None, in_background: bool
    ) -> None:
        self._output_dir = output_dir
        self._device = device
        self._keep_last_n = keep_last_n
        self._in_background = in_background
        self._group = open_host_group()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.last_step = 0  # saved, or being saved
        self._newest: Path | None = None  # that the first process has seen whole

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        run: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        write_model: WriteModel,
        *,
        best: int | None = None,
    ) -> None:
        """Write one complete step, point `latest` (and `best`) at it, and delete what is no longer to be kept.

        Args:
            step: optimizer steps taken.
            model, optimizer, run, parts: as in `capture_run_state`.
            write_model: called on the first process with a whole model and the directory to write it into.
            best: the step `best` points at; None leaves that link alone.

        Raises:
            CheckpointError: this step, or the one before that was written in the background, could not be written.
        """
        self.wait()
        self.last_step = step
        start = time.perf_counter()
        reshard(model)
        written = copy_to_host(model) if self._in_background else model
        snapshot = capture_run_state(model, optimizer, self._device, run, parts, copied=self._in_background)
        held_up = time.perf_counter() - start if self._in_background else None
        write = partial(self._write, step, written, snapshot, write_model, best, held_up)
        if not self._in_background:
            write()
            return
        self._thread = threading.Thread(target=self._note_failure, args=(write,), name="saving", daemon=True)
        self._thread.start()

    def link(self, *, latest: int, best: int | None) -> None:
        """Point `latest` and `best` at saved steps, as a run that was killed may not have come to do."""
        self.last_step = latest
        self._newest = self._output_dir / step_name(latest)
        if is_rank_zero():
            link_steps(self._output_dir, latest=latest, best=best)

    def wait(self) -> None:
        """Return once nothing is being written any more.

        Raises:
            CheckpointError: what was being written could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> StepSaver:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.wait()  # a step that could not be saved is a failure of the run

    def close(self) -> None:
        """Let what is being written be finished; for the end of a run that may have failed already."""
        if sys.exc_info()[0] is KeyboardInterrupt:
            return  # whoever asks a second time does not want to wait; what was complete is complete
        try:
            self.wait()
        except CheckpointError as error:
            get_logger().error(str(error))
        except Exception as error:  # noqa: BLE001 - it must not hide what has ended the run
            # Whoever has gone has ended the run, and that is told elsewhere.
            if is_lost_connection(str(error)):
                get_logger().error("the last step was not saved: another process of the run is gone")
                return
            get_logger().error(f"the last step was not saved: {type(error).__name__}: {error}")

    def _note_failure(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # noqa: BLE001 - raised by wait(): a thread's own end is noticed by nobody
            self._failure = error

    def _write(
        self,
        step: int,
        model: Any,
        snapshot: RunSnapshot,
        write_model: WriteModel,
        best: int | None,
        held_up: float | None,
    ) -> None:
        start = time.perf_counter()
        staged = StagedStep(self._output_dir, step)

        def begin(whole_model: Any) -> None:
            if self._newest is not None and not self._newest.is_dir():
                get_logger().warning(
                    f"{self._newest} was removed during the run, perhaps with all that was saved there; the steps from "
                    f"{staged.final.name} on are saved in {self._output_dir} as before."
                )
            staged.begin()
            write_model(whole_model, staged.path)

        def finish() -> None:
            staged.finish()
            self._newest = staged.final
            link_steps(self._output_dir, latest=step, best=best)
            if self._keep_last_n:
                prune_saved_steps(self._output_dir, self._keep_last_n, newest=step, best=best)

        with explain_failed_save(self._output_dir, step):
            try:
                if isinstance(model, HostShards) or is_cut(model):
                    write_whole(model, begin, self._group)
                else:
                    from_rank_zero(partial(begin, model), self._group)
                write_run_state(staged.path / "state", snapshot, self._group)
                from_rank_zero(finish, self._group)
            finally:
                if is_rank_zero():
                    staged.discard()
        meanwhile = "" if held_up is None else f" in the background; training waited {held_up:.2f} s"
        get_logger().info(f"Saved {staged.final} in {time.perf_counter() - start:.2f} s{meanwhile}")
