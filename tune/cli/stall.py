"""Noticing that the ranks of a run stand still: one waits for something, and all others for it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tune.utils.heartbeat import read_beat

__all__ = ["STACKS_SIGNAL", "StallWatch", "heartbeat_path"]

STACKS_SIGNAL = signal.SIGUSR2  # at which a rank writes where each of its threads is
FIRST_STEP_FACTOR = 3  # it compiles, and warms up


def heartbeat_path(run_dir: Path, place: int) -> Path:
    """Return the file in which a rank, by its place on this machine, notes its steps."""
    return run_dir / f"steps_{place}"


class StallWatch:
    """Looks after when the ranks of one attempt on this machine have finished a step.

    Args:
        run_dir: where they note it.
        warn_after: seconds without a step, for all ranks, after which the user is told; three times that for the first.
        end_after: seconds after which the run is to be ended, counted in the same way; None for never.
    """

    def __init__(self, run_dir: Path, warn_after: int, end_after: int | None) -> None:
        self._run_dir, self._warn_after, self._end_after = run_dir, warn_after, end_after
        self._told_of = 0.0  # the last step before the standstill that was told
        self.place = 0  # of the rank that has taken the fewest steps

    def look(self, processes: Mapping[int, subprocess.Popen[bytes]], first_rank: int) -> tuple[str, bool]:
        """Return what to tell the user, or nothing; and whether the run is to be ended.

        With what it tells, all ranks are made to write the stacks of their threads to where their output goes.
        """
        beats = {place: read_beat(heartbeat_path(self._run_dir, place)) for place in processes}
        known = {place: found for place, found in beats.items() if found is not None}
        if len(known) < len(beats):
            return "", False  # one is still being set up, or done
        latest = max(when for _, when in known.values())
        self.place = min(known, key=lambda place: (known[place][0], place))
        factor = 1 if known[self.place][0] else FIRST_STEP_FACTOR
        seconds = time.time() - latest
        is_over = self._end_after is not None and seconds > self._end_after * factor
        if self._told_of == latest or not (is_over or seconds > self._warn_after * factor):
            return "", is_over
        self._told_of = latest
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(STACKS_SIGNAL)
        steps = ", ".join(f"rank {first_rank + place}: {known[place][0]}" for place in sorted(known)[:16])
        behind = (
            f"Rank {first_rank + self.place} is behind. " if len({n for n, _ in known.values()}) > 1 else ""
        )
        return (
            f"warning: no rank here has finished a step for {seconds:.0f} s (steps so far: {steps}). {behind}"
            "It may be a long validation, save or compilation, or a rank may stand still. Each rank now writes the "
            "stacks of its threads to its output."
        ), is_over
