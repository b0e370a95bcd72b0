"""A request to stop that Python swallows is made again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tune.cli.rank_report import STOP_CODES

_AGAIN_AFTER_S = 0.05


@contextmanager
def resending_swallowed_signals() -> Iterator[None]:
    """In here a signal is sent again where what its handler raised was lost.

    Python calls handlers between any two instructions. Inside a weak reference's callback or a `__del__`, which run
    at every turn, it prints what the handler raises (`Exception ignored in ...`) and goes on as if nothing had been.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        signum = _signal_behind(unraisable.exc_value)
        if signum is None:
            before(unraisable)
            return
        # Later, by a thread: sent from here it would be raised in here, and be lost once more.
        again = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _signal_behind(error: BaseException | None) -> int | None:
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    # What a rank's handler raises. The code may be anything: sys.exit takes texts and lists, too.
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code in STOP_CODES:
        return error.code - 128
    return None
