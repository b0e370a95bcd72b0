"""Saved steps on disk: written whole or not at all, verified before they are used.

    OUTPUT_DIR/step_000123/model/          weights, config and tokenizer in Hugging Face layout
                           adapter/        LoRA weights in PEFT layout, where adapters were trained
                           state/          what exact resuming needs besides the weights
                           manifest.json   size and SHA-256 of every file; written last
    OUTPUT_DIR/latest, OUTPUT_DIR/best     links to one of them

A step is staged beside its final name, flushed to disk and then renamed, so a directory called `step_...` was
complete once. The manifest tells when it no longer is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tune.checkpoints.manifest import MANIFEST_NAME, check_files, write_manifest
from tune.errors import CheckpointError
from tune.utils import get_logger
from tune.utils.lost_connection import is_lost_connection
from tune.utils.mesh import Mesh
from tune.utils.paths import flush

__all__ = [
    "SavedStep",
    "link_steps",
    "list_saved_steps",
    "prune_saved_steps",
    "remove_unfinished_steps",
    "saved_step_of",
    "step_name",
    "verify_step",
    "write_step",
]

STEP_NAME = re.compile(r"step_(\d{6,})")
# Both start with a dot: a listing shows finished steps only.
STAGING_PREFIX = ".unfinished_"
DISCARD_PREFIX = ".discarded_"


@dataclass(frozen=True)
class SavedStep:
    """One directory `step_000123`; complete or not is for `verify_step` to say."""

    path: Path
    step: int

    @property
    def model_dir(self) -> Path:
        """The weights, in a layout other tools read."""
        return self.path / "model"

    @property
    def adapter_dir(self) -> Path:
        """The adapters, in a layout other tools read."""
        return self.path / "adapter"

    @property
    def state_dir(self) -> Path:
        """What exact resuming needs besides the weights."""
        return self.path / "state"


def step_name(step: int) -> str:
    """Return the name of a saved step's directory: "step_000123"."""
    return f"step_{step:06d}"


def list_saved_steps(output_dir: Path) -> list[SavedStep]:
    """Return the saved steps in `output_dir`, oldest first, without looking inside them."""
    if not output_dir.is_dir():
        return []
    found = []
    for path in output_dir.iterdir():
        match = STEP_NAME.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append(SavedStep(path, int(match[1])))
    return sorted(found, key=lambda saved: saved.step)


def saved_step_of(folder: Path) -> SavedStep | None:
    """Return the saved step whose model (or adapter) `folder` is, also through a link; None if it is of no step."""
    path = folder.resolve().parent
    match = STEP_NAME.fullmatch(path.name)
    return SavedStep(path, int(match[1])) if match and (path / MANIFEST_NAME).is_file() else None


def verify_step(saved: SavedStep, part: str = "") -> None:
    """Check that every file of a saved step is there as it was written.

    Args:
        saved: the step.
        part: only the files below this folder of it, such as "model"; all by default.

    Raises:
        CheckpointError: one is not; the message names the first file that differs and how.
    """
    check_files(saved.path, saved.step, part)


@contextmanager
def write_step(output_dir: Path, step: int, mesh: Mesh | None = None) -> Iterator[Path]:
    """Give the body an empty directory to fill; on leaving it becomes `output_dir/step_...`, complete.

    Everything is flushed to disk, then the manifest is written, then the directory gets its name. When the body fails
    nothing is left behind but what was there before.

    Args:
        output_dir: where the step will be.
        step: its number.
        mesh: the processes that fill it together, of which the first one does all this; None: this one alone.

    Raises:
        CheckpointError: a file could not be written; it says what is left and what to do.
        RuntimeError: another process has gone: the reason is to be found there.
    """
    mesh = mesh or Mesh()
    final = output_dir / step_name(step)
    staged = output_dir / f"{STAGING_PREFIX}{final.name}"

    def begin() -> None:
        _remove(staged)
        staged.mkdir(parents=True)

    def finish() -> None:
        write_manifest(staged, step)
        _discard(final)
        os.rename(staged, final)
        flush(output_dir)

    try:
        try:
            mesh.from_rank_zero(begin)
            yield staged
            mesh.from_rank_zero(finish)
        finally:
            if mesh.is_rank_zero:
                for left in (staged, output_dir / f"{DISCARD_PREFIX}{final.name}"):
                    with suppress(OSError):
                        _remove(left)
    except (OSError, RuntimeError, CheckpointError) as error:
        if isinstance(error, RuntimeError) and is_lost_connection(str(error)):
            raise
        # torch and safetensors report a full disk as a RuntimeError of their own.
        raise CheckpointError(_explain_failure(output_dir, final.name, error)) from error


def link_steps(output_dir: Path, *, latest: int, best: int | None) -> None:
    """Make `latest` and `best` in `output_dir` point at these saved steps; None leaves a link as it is."""
    _link_step(output_dir, "latest", latest)
    if best is not None:
        _link_step(output_dir, "best", best)


def prune_saved_steps(
    output_dir: Path, keep_last_n: int, *, newest: int | None = None, best: int | None = None
) -> list[SavedStep]:
    """Delete all but the newest `keep_last_n` saved steps and the best one; return those deleted.

    One that cannot be deleted is named in the log, and stays.

    Args:
        output_dir: where they are.
        keep_last_n: at least 1.
        newest: the step that was saved last. Later ones were skipped as damaged when this run was resumed: they are
            left alone, and do not count, or they would push out those that are whole. None: they all count.
        best: the best step, beside the one that the link `best` points at.
    """
    kept_names = set() if best is None else {step_name(best)}
    link = output_dir / "best"
    if link.is_symlink():
        kept_names.add(os.readlink(link))
    steps = [saved for saved in list_saved_steps(output_dir) if newest is None or saved.step <= newest]
    deleted = []
    for saved in steps[:-keep_last_n]:
        if saved.path.name in kept_names:
            continue
        try:
            _discard(saved.path)
        except OSError as error:
            get_logger().warning(f"{saved.path} could not be deleted: {error.strerror}.")
            continue
        deleted.append(saved)
        with suppress(OSError):  # what is left of it goes when the next run starts
            _remove(output_dir / f"{DISCARD_PREFIX}{saved.path.name}")
    return deleted


def remove_unfinished_steps(output_dir: Path) -> None:
    """Delete what a run that was killed while saving has left behind, naming it in the log."""
    for path in sorted(output_dir.glob(f"{STAGING_PREFIX}step_*")):
        get_logger().warning(
            f"Removing {path.name.removeprefix(STAGING_PREFIX)}, which an earlier run began but did not finish saving."
        )
        try:
            _remove(path)
        except OSError as error:  # in the way only once that very step is saved
            get_logger().warning(f"{path} could not be removed: {error.strerror}.")
    for path in output_dir.glob(f"{DISCARD_PREFIX}step_*"):
        with suppress(OSError):
            _remove(path)


def _link_step(output_dir: Path, link: str, step: int) -> None:
    """Make `output_dir/link` point at a saved step, replacing an older link in one motion.

    A step that is not there (any more) is left alone, and so is the older link.
    """
    staged, final = output_dir / f".{link}.new", output_dir / link
    if not (output_dir / step_name(step)).is_dir():
        return
    try:
        if final.is_file() and not final.is_symlink() and not final.read_bytes().startswith(b"step_"):
            raise FileExistsError(errno.EEXIST, "a file of that name is there, which tune did not write")
        _remove(staged)
        staged.symlink_to(step_name(step), target_is_directory=True)
        os.replace(staged, final)
    except OSError as error:
        # A convenience for people: resuming looks at the steps themselves.
        reason = "it is a folder, not a link" if final.is_dir() and not final.is_symlink() else error.strerror
        get_logger().warning(f"Could not make {final} a link to {step_name(step)}: {reason}.")
        with suppress(OSError):
            _remove(staged)


def _discard(path: Path) -> None:
    """Move a saved step out of sight in one motion: a half-deleted one is never mistaken for a damaged one."""
    if os.path.lexists(path):  # also a link that leads nowhere
        hidden = path.with_name(f"{DISCARD_PREFIX}{path.name}")
        _remove(hidden)
        os.rename(path, hidden)


def _remove(path: Path) -> None:
    """Delete a folder with all that is in it; of a link the link; and whatever else has this name, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _explain_failure(output_dir: Path, name: str, error: BaseException) -> str:
    reason = (
        error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().split("\n")[0]
    )
    try:
        free = f" {shutil.disk_usage(output_dir).free / 1024**3:.2f} GiB are free there."
    except OSError:
        free = ""
    earlier = [saved.path.name for saved in list_saved_steps(output_dir)]
    intact = f" Earlier saved steps are intact; the newest is {earlier[-1]}." if earlier else ""
    return (
        f"could not save {name} in {output_dir}: {reason}.{free}{intact} Make room or choose another output_dir "
        "(keep_last_n_checkpoints limits what is kept), then go on with resume_from_checkpoint=true."
    )
