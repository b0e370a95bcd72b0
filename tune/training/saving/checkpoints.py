"""The saved steps of a run: found, gone on from, and written by all its processes together."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from tune.errors import CheckpointError
from tune.training.distributed.sharded_model import copy_to_host, reshard, write_full_model
from tune.training.saving.fingerprint import check_fingerprint
from tune.training.saving.resume_point import choose_step_to_resume, set_aside_later_steps
from tune.training.saving.run_fields import check_run
from tune.training.saving.run_lock import RunLock
from tune.training.saving.run_record import RunRecord
from tune.training.saving.run_state import (
    RUN_FILE,
    RunSnapshot,
    capture_run_state,
    load_run_state,
    read_run,
    write_run_state,
)
from tune.training.saving.run_surroundings import describe_machine, describe_recipe
from tune.training.saving.saved_steps import (
    SavedStep,
    link_steps,
    list_saved_steps,
    prune_saved_steps,
    remove_unfinished_steps,
    step_name,
    write_step,
)
from tune.training.saving.shared_folder import require_shared_folder
from tune.training.saving.tokenizer_copy import keep_tokenizer
from tune.training.saving.weight_sums import check_weights, sum_weights
from tune.training.train_state import TrainState
from tune.utils import expand_path, get_logger
from tune.utils.lost_connection import is_lost_connection
from tune.utils.mesh import Mesh

__all__ = ["Checkpoints"]

WriteModel = Callable[[Any, Path], None]


class NamesStep(Protocol):
    """What is read of a checkpointer: which step of which folder a run goes on from."""

    output_dir: Path
    recipe_checkpoint: str | None
    resume_from_checkpoint: bool


class Checkpoints:
    """The output directory of a run, held for it alone, and the saved steps in it.

    Every process of the run has one, and calls its methods together with the others. The first process writes the model
    in its common layout, each process its part of the state; the first then flushes everything, writes the manifest and
    renames. What fails on one of them is raised on all.

    Saved in the background, a step costs training the time of a copy to host memory. There is room for one such copy:
    the next step waits for the one before. As a context, it is left when the last step is written; `close` ends it.

    Args:
        output_dir: where the steps go; created if missing.
        mesh: the processes of the run.
        keep_last_n: older steps are deleted beyond this many, except the best; None keeps all.
        in_background: training goes on while a step is written.

    Attributes:
        output_dir, mesh: as given.
        resumes: whether the run was asked to go on.
        resumed, model_dir, adapter_dir: the saved step to go on from, if any, and what is in it.
        saved: its counters and facts: what `TrainState.state` returned.
        last_step: saved, or being saved.
        record: what is known of the run beside its numbers.
    """

    def __init__(
        self,
        output_dir: str | Path,
        mesh: Mesh,
        keep_last_n: int | None = None,
        in_background: bool = False,
    ) -> None:
        self.output_dir = expand_path(output_dir)
        self.mesh = mesh
        self.resumes = False
        self.resumed: SavedStep | None = None
        self.saved: dict[str, Any] = {}
        self.model_dir: Path | None = None
        self.adapter_dir: Path | None = None
        self.last_step = 0
        self.record = RunRecord(self.output_dir, mesh.rank)
        self._keep_last_n = keep_last_n
        self._in_background = in_background
        self._thread_mesh = mesh.for_thread()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._lock: RunLock | None = None
        self.write_config: Callable[[], None] | None = None  # again, where the folder is made again
        self._newest: Path | None = None  # of this run, or resumed from

    def find(self, resume: bool = False, checkpointer: NamesStep | None = None) -> None:
        """Hold the directory, remove what a killed run left unfinished there, and find the step to go on from.

        Args:
            resume: go on from a saved step, the newest one if none is named.
            checkpointer: may ask for that too, and name the step; where it would write does not matter.

        Raises:
            TrainingError: another run holds the directory.
            CheckpointError: it cannot be written, some process does not see it, or there is no such step.
        """
        if checkpointer and checkpointer.output_dir != self.output_dir:
            get_logger().info(
                f"checkpointer.output_dir is not used: steps go to output_dir, {self.output_dir}"
            )
        name = checkpointer.recipe_checkpoint if checkpointer else None
        self.resumes = resume or bool(checkpointer and checkpointer.resume_from_checkpoint)
        self.resumed = self.mesh.from_rank_zero(partial(self._claim, self.resumes, name))
        self.record.begin(self.resumes)
        require_shared_folder(self.output_dir, self.mesh)
        if self.resumed is not None:
            self.saved = read_run(self.resumed.state_dir)
            check_run(self.saved, self.resumed.state_dir / RUN_FILE, self.resumed.step)
            self.model_dir, self.adapter_dir = self.resumed.model_dir, self.resumed.adapter_dir

    def copy_tokenizer(self) -> Path | None:
        """Return a folder with the tokenizer of the step to go on from, which that step's deletion leaves alone.

        None without a step, and where adapters were saved without one: their base has it.
        """
        return keep_tokenizer(self.resumed, self.mesh) if self.resumed else None

    def restore(
        self, state: TrainState, model: nn.Module, optimizer: Optimizer, allow_changes: bool = False
    ) -> None:
        """Put the saved step's state into what now stands; the weights are there already. Without a step, do nothing.

        Call it after everything that draws random numbers: what is drawn from then on is that of the next step.

        Args:
            state: its counters and parts are restored.
            model: filled from the saved step.
            optimizer: gets back its tensors and settings.
            allow_changes: go on with other settings or data, or without a part that was saved, having said which.

        Raises:
            CheckpointError: the step is of another run, or cannot be read, or its model is not what was trained.
        """
        if self.mesh.is_rank_zero:
            self.record.note(**describe_machine(self.mesh.device), seed=state.seed)
        if self.mesh.is_rank_zero and state.recipe:
            self.record.note(recipe=describe_recipe(state.recipe), fingerprint=state.fingerprint)
        if self.resumed is None:
            return
        where = str(self.resumed.path)
        changed = check_fingerprint(
            self.saved["fingerprint"], state.fingerprint, where, allow_changes=allow_changes
        )
        check_weights(self.saved.get("weights"), model, self.mesh, where, allow_changes=allow_changes)
        load_run_state(
            self.resumed.state_dir,
            model,
            optimizer,
            state.parts,
            settings_changed=bool(changed),
            allow_lost_parts=allow_changes,
        )
        state.restore(self.saved)
        state.seed_next_step()
        self.last_step = state.step
        self._newest = self.resumed.path
        if self.mesh.is_rank_zero:  # a run that was killed may not have come to do it
            link_steps(self.output_dir, latest=state.step, best=state.best_step)
        get_logger().info(f"Resumed from {where}: step {state.step} of {state.num_steps}")

    def save(
        self, state: TrainState, model: nn.Module, optimizer: Optimizer, write_model: WriteModel
    ) -> None:
        """Write one complete step, point `latest` (and `best`) at it, and delete what is no longer to be kept.

        What is drawn at random from then on is that of the next step, as in a run that is resumed from this one.

        Args:
            state: where the run stands, with its parts.
            model: its weights as they are trained.
            optimizer: of the model.
            write_model: called on the first process with a whole model and the directory to write it into.

        Raises:
            CheckpointError: this step, or the one before that was written in the background, could not be written.
        """
        self.wait()
        start = time.perf_counter()
        state.note_saving()
        self.last_step = state.step
        reshard(model)
        run = state.state() | {"weights": sum_weights(model, self.mesh)}
        written = copy_to_host(model, self.mesh) if self._in_background else model
        snapshot = capture_run_state(model, optimizer, run, state.parts, copied=self._in_background)
        held_up = time.perf_counter() - start if self._in_background else None
        write = partial(self._write, state.step, written, snapshot, write_model, state.best_step, held_up)
        if self._in_background:
            self._thread = threading.Thread(
                target=self._note_failure, args=(write,), name="saving", daemon=True
            )
            self._thread.start()
        else:
            write()
        state.seed_next_step()

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

    def __enter__(self) -> Checkpoints:
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
        """Let what is being written be finished, and another run have the directory; also after a failure."""
        try:
            # Whoever asks a second time does not want to wait; what was complete is complete.
            if sys.exc_info()[0] is not KeyboardInterrupt:
                self.wait()
        except CheckpointError as error:
            get_logger().error(str(error))
        except Exception as error:  # noqa: BLE001 - it must not hide what has ended the run
            # Whoever has gone has ended the run, and that is told elsewhere.
            if is_lost_connection(str(error)):
                get_logger().error("the last step was not saved: another process of the run is gone")
                return
            get_logger().error(f"the last step was not saved: {type(error).__name__}: {error}")
        finally:
            self.record.close()
            if self._lock is not None:
                self._lock.release()

    def _claim(self, resume: bool, name: str | None) -> SavedStep | None:
        """Hold the directory, clear away what a killed run left, and return the step to go on from."""
        self._lock = RunLock(self.output_dir)
        try:
            remove_unfinished_steps(self.output_dir)
            chosen = choose_step_to_resume(self.output_dir, resume, name)
            if chosen is not None and name is not None:
                set_aside_later_steps(chosen)
            return chosen
        except OSError as error:
            raise CheckpointError(
                f"output_dir {self.output_dir} cannot be read: {error.strerror}. Mend it or choose another output_dir."
            ) from error

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
        start, name = time.perf_counter(), step_name(step)
        moved_to = self._thread_mesh.from_rank_zero(self._look_for_folder)
        output_dir = moved_to or self.output_dir
        if self.mesh.is_rank_zero and self._newest is not None and not self._newest.is_dir():
            get_logger().warning(
                f"{self._newest} was removed during the run, perhaps with all that was saved there; the steps from "
                f"{name} on are saved in {self.output_dir} as before."
            )
        try:
            with write_step(output_dir, step, self._thread_mesh) as staged:
                write_full_model(model, lambda whole: write_model(whole, staged), self._thread_mesh)
                write_run_state(staged / "state", snapshot, self._thread_mesh)
        except CheckpointError as error:
            found = self._lock.find_folder() if self._lock else output_dir
            if found == output_dir:
                raise
            went = f"renamed to {found}" if found else "deleted"
            raise CheckpointError(
                f"output_dir {output_dir} was {went} during the run, while {name} was being written. What was saved "
                f"before it {'is there' if found else 'is gone with it'}."
                + f" Go on with output_dir={found} resume_from_checkpoint=true."
                * bool(found)
            ) from error
        self._newest = output_dir / name
        if self.mesh.is_rank_zero:
            link_steps(output_dir, latest=step, best=best)
            if self._keep_last_n:
                prune_saved_steps(output_dir, self._keep_last_n, newest=step, best=best)
        meanwhile = f" in the background; training waited {held_up:.2f} s" if held_up else ""
        get_logger().info(f"Saved {self._newest} in {time.perf_counter() - start:.2f} s{meanwhile}")
        self.record.note_saved(step)
        if moved_to:
            raise CheckpointError(
                f"output_dir {self.output_dir} was renamed to {moved_to} during the run: {name} was saved there, and "
                f"nothing more is written under the old name. Go on with output_dir={moved_to} "
                "resume_from_checkpoint=true."
            )

    def _look_for_folder(self) -> Path | None:
        """Return where the directory has gone if it has another name now; None where all is well.

        One that was deleted is held anew, unless somebody else's has taken its name.
        """
        if self._lock is None:
            return None
        found = self._lock.find_folder()
        if found is not None:
            return None if found == self.output_dir else found
        if self.output_dir.exists() and (
            list_saved_steps(self.output_dir) or (self.output_dir / "config.yaml").exists()
        ):
            raise CheckpointError(
                f"output_dir {self.output_dir} was deleted during the run, and another folder has its name now, with a "
                "run of its own in it: nothing is written there. Start again with another output_dir."
            )
        self._lock.release()
        with suppress(CheckpointError):  # what cannot be written is said by whoever writes the step
            self._lock = RunLock(self.output_dir)
            if self.write_config is not None:
                self.write_config()
        return None
