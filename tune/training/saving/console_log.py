"""What the console said of a run, kept beside its saved steps."""

from __future__ import annotations

import logging
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune.errors import TuneError
from tune.utils import get_logger
from tune.utils.escape import escape_lines
from tune.utils.logging import copy_console_to

__all__ = ["CONSOLE_LOG", "ConsoleLog"]

CONSOLE_LOG = "console.log"
_MARK = "=== tune, "
_MAX_WARNINGS = 50


class ConsoleLog:
    """`console.log`: all that the first process says, and the errors of the others.

    Each line is in the file when it has been said, so that a run that is killed has left it. A disk that is full costs
    lines, not the run. A file of that name which is none of ours is left as it is.

    Args:
        output_dir: of the run; exists.
        rank: of this process.
        goes_on: the run was asked to go on: what is there stays, and more follows.

    Attributes:
        warnings: the first of them.
    """

    def __init__(self, output_dir: Path, rank: int = 0, goes_on: bool = False) -> None:
        self.warnings: list[str] = []
        self._path = output_dir / CONSOLE_LOG
        self._prefix = f"rank {rank}: " if rank else ""
        self._shown: Any = None
        self._hook: Any = self._show_warning  # the same object each time, to be told by it
        if not _is_own(self._path):
            get_logger().warning(f"{self._path} is no log of tune's, so it is left as it is")
            return
        if rank == 0:
            with suppress(OSError):
                if not goes_on:
                    self._path.unlink(missing_ok=True)
                self._append(f"{_MARK}{time.strftime('%Y-%m-%d %H:%M:%S')} ===")
        copy_console_to(self.write)
        # What libraries warn of goes to the console, too, by another way.
        self._shown = warnings.showwarning
        setattr(warnings, "showwarning", self._hook)  # noqa: B010 - its type has other names for the arguments

    def write(self, text: str, level: int = logging.INFO) -> None:
        """Add a text of one line or more."""
        if level == logging.WARNING and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
        if not self._prefix or level >= logging.ERROR:
            with suppress(OSError):
                self._append("\n".join(self._prefix + line for line in text.split("\n")))

    def close(self) -> None:
        """Add what has ended the run, if an error is on its way, and write no more."""
        if self._shown is None:
            return
        if error := describe_error():
            self.write(error, logging.ERROR)
        copy_console_to(None)
        if warnings.showwarning is self._hook:
            setattr(warnings, "showwarning", self._shown)  # noqa: B010
        self._shown = None

    def _append(self, text: str) -> None:
        # Opened for each line, of which there are few: the folder may be moved or made anew meanwhile.
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")

    def _show_warning(self, message: Any, category: Any, *where: Any) -> None:
        self._shown(message, category, *where)
        with suppress(Exception):  # a warning may be of any kind, and must not end the run
            self.write(escape_lines(f"{category.__name__}: {message}"), logging.WARNING)


def describe_error() -> str:
    """Return what is said of the exception that is on its way, "" where none is: with a traceback if it is a bug."""
    error = sys.exc_info()[1]
    if error is None or isinstance(error, SystemExit | GeneratorExit):
        return ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, TuneError):
        return escape_lines(f"error: {error}")
    return escape_lines("".join(traceback.format_exception(error)).rstrip("\n"))


def _is_own(path: Path) -> bool:
    """Tell whether what is at `path`, if anything, was begun here."""
    try:
        if not path.is_file():
            return not path.exists() and not path.is_symlink()
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(len(_MARK)) in ("", _MARK)
    except OSError:
        return False
