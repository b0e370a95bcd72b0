"""A sign of life after each step, for the launcher of this process to read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["beat", "read_beat", "start_heartbeat", "stop_heartbeat"]

_descriptor: int | None = None


def start_heartbeat(path: Path) -> None:
    """Let `beat` write to this file from now on; without, it does nothing."""
    global _descriptor
    _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)


def beat(num_steps: int) -> None:
    """Note that so many steps have been finished since the loop began."""
    if _descriptor is not None:
        os.pwrite(_descriptor, b"%12d" % num_steps, 0)


def stop_heartbeat() -> None:
    """Note that no step is to be expected, since the loop is over."""
    if _descriptor is not None:
        os.ftruncate(_descriptor, 0)


def read_beat(path: Path) -> tuple[int, float] | None:
    """Return how many steps a process has finished, and when the last one; None outside of its loop."""
    try:
        text = path.read_text()
        return (int(text), path.stat().st_mtime) if text else None
    except (OSError, ValueError):
        return None
