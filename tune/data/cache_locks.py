"""Being the only process that does a thing, on this machine: who dies lets go."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tune.utils.logging import get_logger

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Tokenized data of tune: made anew where it is missing. `tune cache ls` and `tune cache clear` look after it.\n"
)


class UnusableError(Exception):
    """The folder of a cache cannot be used."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def usable() -> Iterator[None]:
    """Within, what the system refuses means that the folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise UnusableError(error) from error


@contextmanager
def locked(root: Path, name: str, *, wait: bool = True, notice: str = "") -> Iterator[bool]:
    """Be the only one in here for a name, in a folder that is made if needed; yield whether that is so.

    Args:
        root: holds the lock.
        name: what is locked.
        wait: until nobody else is in here; otherwise that others are is the answer.
        notice: said in the log before waiting.

    Raises:
        UnusableError: the folder cannot be written to, or locks nothing.
    """
    path = root / f"{name}.lock"
    with usable():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (root / "CACHEDIR.TAG").exists():
            (root / "CACHEDIR.TAG").write_text(_TAG, encoding="ascii")
        lock = _take(path, wait, notice)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # by its owner; who has waited for it makes it anew
        os.close(lock)


def _take(path: Path, wait: bool, notice: str) -> int | None:
    """Return a descriptor that holds the lock at `path`, None where another has it and is not waited for."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(lock)
                    return None
                if notice:
                    get_logger().info(notice)
                    notice = ""
                fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(lock).st_ino:
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its last owner has removed it: it locks nothing any more
