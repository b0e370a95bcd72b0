"""The signals that ask a run to finish its step, to save and to stop."""

from __future__ import annotations

import signal

__all__ = ["STOP_SIGNALS", "heeded_signals"]

# Ctrl-C; the end of a job's time, as schedulers announce it in two ways; a terminal that has gone.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Return those that mean something to this process: where `nohup` had SIGHUP ignored, it stays so."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(signum for signum in STOP_SIGNALS if not (is_ignored and signum == signal.SIGHUP))
