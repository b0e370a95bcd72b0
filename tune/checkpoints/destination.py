"""A directory that receives a model as a whole, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tune.checkpoints.companions import TOKENIZER_FILES
from tune.checkpoints.save import WEIGHT_FILES
from tune.errors import CheckpointError

STAGING = ".converting"
_MOVED = ".moved"
# Without one of these, weights are not taken for a model.
_CONFIGURATIONS = ("config.json", "params.json")


@contextmanager
def staged_directory(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to write a model in; what is there at the end is moved into `directory`, the configuration last.

    Whatever ends the work early leaves `directory` as it was. Whatever ends the program at once leaves a folder
    `.converting` in it, which marks it as unfinished and is cleared away by the next attempt.

    Args:
        directory: made if needed; it must be empty.
        force: it may hold things: a model's weights, configuration and tokenizer are removed when the new ones are
            whole, and files of the same names are replaced.

    Raises:
        CheckpointError: there is something in `directory`, another conversion writes to it, or it cannot be written.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise CheckpointError(f"{directory} is a file, where a folder for the model is needed")
        is_new = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        staging = directory / STAGING
        lock = _claim(directory, staging)
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory} cannot be written: {error.strerror}") from error
    try:
        with ExitStack() as undo:  # whatever ends the work before it is whole, Ctrl-C as well
            if is_new:
                undo.callback(_remove_if_empty, directory)
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            _require_empty(directory, force)
            yield staging
            undo.pop_all()
        _move_in(directory, staging)
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory} cannot be written: {error.strerror}") from error
    finally:
        os.close(lock)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # somebody else has put something there meanwhile
        directory.rmdir()


def _claim(directory: Path, staging: Path) -> int:
    """Make an empty staging folder that is ours alone; return what holds the claim."""
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise CheckpointError(f"{staging} is in the way: remove it")
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CheckpointError(f"another conversion is writing to {directory}") from error
    moved = staging / _MOVED
    if moved.is_file():  # an attempt that ended while its files were moved in: they are no model
        for name in moved.read_text(encoding="utf-8").splitlines():
            if Path(name).name == name:
                (directory / name).unlink(missing_ok=True)
    for leftover in staging.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return lock


def _require_empty(directory: Path, force: bool) -> None:
    held = sorted(path.name for path in directory.iterdir() if path.name != STAGING)
    if held and not force:
        more = f" and {len(held) - 4} more" if len(held) > 4 else ""
        raise CheckpointError(
            f"{directory} holds {', '.join(held[:4])}{more} already; files of two models must not mix. Choose "
            "another folder, or replace the model in it with --force (force=True)."
        )


def _move_in(directory: Path, staging: Path) -> None:
    files = sorted(
        path.relative_to(staging) for path in staging.rglob("*") if path.is_file() and path.name != _MOVED
    )
    for file in files:
        _flush(staging / file)
    (staging / _MOVED).write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    _flush(staging / _MOVED)
    _flush(staging)
    for pattern in (
        *_CONFIGURATIONS,
        *WEIGHT_FILES,
        *TOKENIZER_FILES,
    ):  # the configuration first: from here on it is no model
        for old in directory.glob(pattern):
            old.unlink()
    for file in sorted(files, key=lambda file: file.name in _CONFIGURATIONS):
        (directory / file).parent.mkdir(exist_ok=True)
        os.replace(staging / file, directory / file)
    _flush(directory)
    shutil.rmtree(staging)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise CheckpointError where an existing folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"the weights need {num_bytes / 1e9:.3g} GB and {folder} has {free / 1e9:.3g} GB free: choose a folder on "
            "another disk, or make room"
        )
