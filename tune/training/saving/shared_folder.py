"""Whether all processes of a run see one folder: on several machines it takes a disk that they share."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tune.errors import CheckpointError
from tune.utils.mesh import Mesh

__all__ = ["require_all_written", "require_shared_folder"]

# Network file systems show what another machine wrote after a while: NFS keeps a folder's names for up to a minute.
SEEN_WITHIN_S = 90.0
_POLL_S = 0.1


def require_shared_folder(folder: Path, mesh: Mesh) -> None:
    """Refuse a folder that is not the same one for every process; all must call this.

    Otherwise each machine would keep its own part of a saved step to itself, and no step could be resumed from.

    Raises:
        CheckpointError: some process does not see what the first one writes there; raised on all.
    """
    if mesh.world_size == 1:
        return
    file = folder / mesh.from_rank_zero(lambda: _leave_word(folder))
    found = mesh.gather_to_all((platform.node(), _comes_true(file.is_file)))
    mesh.from_rank_zero(lambda: file.unlink(missing_ok=True))
    blind = sorted({node for node, sees in found if not sees})
    if blind:
        raise CheckpointError(
            f"output_dir {folder} is not the same folder for all processes: what the first one writes there on "
            f"{found[0][0]} is not seen on {', '.join(blind)}. Saved steps would lack their parts: choose an "
            "output_dir on a disk that all machines share."
        )


def require_all_written(folder: Path, pattern: str, mesh: Mesh) -> None:
    """Return once the first process sees every file that the others have written; all must call this.

    Args:
        folder: where they were written.
        pattern: of this process's files in it.
        mesh: the processes of the run; in a thread, from `Mesh.for_thread`.

    Raises:
        CheckpointError: a file is missing or cut short; raised on all.
    """
    if mesh.world_size == 1:
        return
    written = mesh.gather_to_all((mesh.rank, platform.node(), *_sizes(folder, pattern)))

    def check() -> None:
        for rank, node, files, problem in written:
            if problem:
                raise CheckpointError(f"what rank {rank} on {node} has written is gone already: {problem}")
            for name, num_bytes in files.items():
                if not _comes_true(partial(_has_size, folder / name, num_bytes)):
                    raise CheckpointError(
                        f"{name}, written by rank {rank} on {node}, is not seen whole by rank 0 on "
                        f"{written[0][1]}: all machines have to share the disk of output_dir"
                    )

    mesh.from_rank_zero(check)


def _leave_word(folder: Path) -> str:
    """Make an empty file and return its name."""
    file = folder / f".seen_{uuid.uuid4().hex}"
    try:
        file.touch()
    except OSError as error:
        raise CheckpointError(
            f"cannot write in output_dir {folder}: {error.strerror}. Choose another output_dir."
        ) from error
    return file.name


def _sizes(folder: Path, pattern: str) -> tuple[dict[str, int], str]:
    """Return the size of each file, or what happened to one: the other processes wait for an answer."""
    try:
        return {path.name: path.stat().st_size for path in folder.glob(pattern)}, ""
    except OSError as error:
        return {}, f"{error.filename}: {error.strerror}"


def _has_size(path: Path, num_bytes: int) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except OSError:
        return False


def _comes_true(condition: Callable[[], bool]) -> bool:
    """Return whether something is so, at the latest after the time that network file systems need."""
    until = time.monotonic() + SEEN_WITHIN_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True
