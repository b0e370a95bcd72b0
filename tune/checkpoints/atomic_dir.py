"""A directory that receives a model as a whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tune.checkpoints.locate import COMPLETE_MARKER, STAGING, read_complete_marker
from tune.checkpoints.save import WEIGHT_FILES
from tune.checkpoints.side_files import TOKENIZER_FILES
from tune.errors import CheckpointError
from tune.utils import get_logger
from tune.utils.paths import flush

# Without one of these, weights are not taken for a model.
_CONFIGURATIONS = ("config.json", "params.json")
_PLACING = ".placing"
# What a file system answers that knows no second name for a file.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@contextmanager
def staged_directory(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to write a model in; what is there at the end is brought into `directory`.

    Whatever ends the work early leaves `directory` as it was. What ends the program at once may leave a folder
    `.converting` in it, which the next attempt deals with: from the moment when the new model is whole and on the disk,
    its files are brought to their places even so, and until then nothing has been touched. At each moment
    `find_model_dir` finds the old model or the new one.

    Args:
        directory: made if needed; it must be empty, or hold what an attempt that was stopped has brought there.
        force: it may hold things: a model's weights, configuration and tokenizer are removed when the new ones are
            whole, and files of the same names are replaced.

    Raises:
        CheckpointError: there is something in `directory`, another conversion writes to it, or it cannot be written.
    """
    staging = directory / STAGING
    with ExitStack() as held:
        try:
            # Undone is what was begun whatever ends the work before it is whole, Ctrl-C at any moment as well.
            with ExitStack() as undo:
                if directory.exists() and not directory.is_dir():
                    raise CheckpointError(f"{directory} is a file, where a folder for the model is needed")
                for folder in (directory, staging):
                    if not folder.exists():
                        undo.callback(_remove_if_empty, folder)
                directory.mkdir(parents=True, exist_ok=True)
                lock, is_ours = _claim(directory, staging)
                held.callback(os.close, lock)
                undo.callback(_clear, staging)
                is_empty = _require_empty(directory, force or is_ours)
                yield staging
                _mark_complete(staging, is_ours=is_empty or is_ours)
                undo.pop_all()
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or directory} cannot be written: {error.strerror}"
            ) from error
        try:
            _bring_in(directory, staging)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or directory} cannot be written: {error.strerror}. The new model is whole, in "
                f"{staging}, and gets its place when the same is tried again."
            ) from error


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # somebody else has put something there meanwhile
        directory.rmdir()


def _claim(directory: Path, staging: Path) -> tuple[int, bool]:
    """Make an empty staging folder that is ours alone, once an attempt that was stopped has been brought to its end.

    Returns:
        What holds the claim; and whether all that `directory` holds of a model is from such an attempt.
    """
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise CheckpointError(f"{staging} is in the way: remove it")
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CheckpointError(f"another conversion is writing to {directory}") from error
    with ExitStack() as undo:
        undo.callback(os.close, lock)
        is_ours = False
        declared = read_complete_marker(staging)
        if declared and _is_all_there(directory, staging, declared["files"]):
            is_ours = bool(declared.get("is_ours"))
            _bring_in(directory, staging, keep_folder=True)
            get_logger().warning(
                f"An earlier conversion into {directory} was stopped when it was all but done: its model is there now."
            )
        (staging / COMPLETE_MARKER).unlink(missing_ok=True)
        for leftover in staging.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        undo.pop_all()
    return lock, is_ours


def _is_all_there(directory: Path, staging: Path, files: list[str]) -> bool:
    """Tell whether each file of a model is staged or in its place, as an attempt that was stopped leaves them.

    Where one is neither, the word that a model is whole is not ours, or no longer true: nothing may be removed for it.
    """
    return all((staging / file).is_file() or (directory / file).is_file() for file in files)


def _require_empty(directory: Path, force: bool) -> bool:
    """Tell whether a folder is empty, having refused one that is not unless with `force`."""
    held = sorted(path.name for path in directory.iterdir() if path.name != STAGING)
    if held and not force:
        more = f" and {len(held) - 4} more" if len(held) > 4 else ""
        raise CheckpointError(
            f"{directory} holds {', '.join(held[:4])}{more} already; files of two models must not mix. Choose "
            "another folder, or replace the model in it with --force (force=True)."
        )
    return not held


def _mark_complete(staging: Path, *, is_ours: bool) -> None:
    """Note that all there is to write is written, once it is on the disk: from here on the new model counts."""
    files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    for file in files:
        flush(staging / file)
    for folder in [path for path in staging.rglob("*") if path.is_dir()]:
        flush(folder)
    staged = staging / f"{COMPLETE_MARKER}.new"
    staged.write_text(json.dumps({"files": files, "is_ours": is_ours}), encoding="utf-8")
    flush(staged)
    os.replace(staged, staging / COMPLETE_MARKER)
    flush(staging)


def _bring_in(directory: Path, staging: Path, *, keep_folder: bool = False) -> None:
    """Give the files of a whole model their places in `directory`; may be stopped anywhere and done again."""
    declared = read_complete_marker(staging)
    assert declared is not None
    left = [file for file in declared["files"] if (staging / file).is_file()]
    in_place = set(declared["files"]).difference(left)  # where files have one name only
    for folder in {(directory / file).parent for file in left} - {directory}:
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, where a folder of the model is needed: remove it")
        folder.mkdir(exist_ok=True)
    # The configuration first, and in the end last: in between it is no model to other programs.
    for pattern in (*_CONFIGURATIONS, *WEIGHT_FILES, *TOKENIZER_FILES):
        for old in directory.glob(pattern):
            if old.name not in in_place and (old.is_symlink() or not old.is_dir()):
                old.unlink()
    for file in sorted(left, key=lambda file: file in _CONFIGURATIONS):
        _place(staging / file, directory / file)
    for folder in {(directory / file).parent for file in declared["files"]} | {directory}:
        flush(folder)
    if not keep_folder:
        _clear(staging)


def _place(staged: Path, final: Path) -> None:
    """Give a staged file its place under a second name, so that what is staged stays whole; else under that alone."""
    second = staged.with_name(_PLACING)
    second.unlink(missing_ok=True)
    try:
        os.link(staged, second)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(staged, final)
        return
    os.replace(second, final)


def _clear(staging: Path) -> None:
    """Remove a staging folder: first the word that it is whole, or what was left of it would be taken for a model."""
    with suppress(OSError):
        (staging / COMPLETE_MARKER).unlink(missing_ok=True)
        flush(staging)
    shutil.rmtree(staging, ignore_errors=True)


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise CheckpointError where an existing folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"the weights need {num_bytes / 1e9:.3g} GB and {folder} has {free / 1e9:.3g} GB free: choose a folder on "
            "another disk, or make room"
        )
