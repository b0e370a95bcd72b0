"""The temporary folder of a launcher: what its ranks read at the start, how they end, their sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["make_run_dir"]

_PREFIX = "tune_run_"
_LOCK = "lock"
_NEW_S = 60  # a folder may be so new that it has no lock yet


@contextmanager
def make_run_dir() -> Iterator[Path]:
    """Make the folder, and take it away at the end; those of launchers that were killed are taken away first."""
    _clear_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # The kernel gives up the lock with the process, however that ends.
    with open(folder / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            about = folder.lstat()
            if about.st_uid != os.getuid() or folder.is_symlink() or time.time() - about.st_mtime < _NEW_S:
                continue
            with contextlib.suppress(FileNotFoundError), open(folder / _LOCK, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
