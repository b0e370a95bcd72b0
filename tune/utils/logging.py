"""The one logger of the library. Library code never configures logging; recipes do, once."""

from __future__ import annotations

import logging
import sys

from tune.utils.escape import escape_lines
from tune.utils.ranks import is_rank_zero


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


class _StderrHandler(logging.Handler):
    """Writes to whatever sys.stderr is now, so that redirected and captured streams are honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(escape_lines(self.format(record)) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed pipe must not end a training run
            self.handleError(record)
