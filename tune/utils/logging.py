"""The one logger of the library. Library code never configures logging; recipes do, once."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable

from tune.utils.escape import escape_lines
from tune.utils.ranks import is_rank_zero

Copy = Callable[[str, int], None]

# What was said before anybody keeps a copy, the newest lines of it.
_early: deque[tuple[str, int]] = deque(maxlen=500)
_copy: Copy | None = None


def get_logger(level: str | None = None) -> logging.Logger:
    """Return the logger `tune`; with a level, also set it up to write plain lines to stderr.

    Args:
        level: one of DEBUG, INFO, WARNING, ERROR. None (library code) changes nothing. All processes of a run but the
            first only write errors: they do the same, and one of them tells of it.

    Raises:
        ValueError: the level is unknown.
    """
    logger = logging.getLogger("tune")
    if level is not None:
        logger.setLevel(level.upper() if is_rank_zero() else "ERROR")
        if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
            handler = _StderrHandler()
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.addHandler(handler)
            logger.propagate = False
    return logger


def note_console(text: str, level: int = logging.INFO) -> None:
    """Keep a copy of what was written to the console, if anybody keeps one; without line end at its end."""
    if _copy is None:
        _early.append((text, level))
    else:
        _copy(text, level)


def copy_console_to(copy: Copy | None) -> None:
    """Call `copy` with each text that goes to the console, and its level; first with what was said before.

    Args:
        copy: must not raise; None ends it.
    """
    global _copy
    _copy = copy
    if copy is not None:
        for text, level in _early:
            copy(text, level)
    _early.clear()


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is now, so that redirected and captured streams are honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        text = escape_lines(self.format(record))
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed pipe must not end a training run
            self.handleError(record)
        note_console(text, record.levelno)
