"""Watching the ranks of a run: who is alive, what signals they still have to get, and how the run ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tune.cli.exit_codes import EXIT_FAILED
from tune.cli.rank_report import (
    STOP_CODES,
    RankEnd,
    RankStart,
    end_of_process,
    explain,
    find_first,
    read_end,
    read_start,
)
from tune.cli.terminal import paint

_KILL_AFTER_S = 10.0  # from the second Ctrl-C, which asks to stop at once
_KILL_AFTER_ABORT_S = (
    30.0  # from the end of a rank that somebody stopped alone: without it the others get nowhere
)
_SETTLE_S = 1.0  # until an error that came first, but was written down later, is sure to be known


@dataclass
class _Rank:
    start: RankStart
    end: RankEnd | None = None
    num_delivered: int = 0  # of the requests


@dataclass
class _Attempt:
    """The processes of one start: all of them are started again after a failure."""

    records: Path
    num_ranks: int
    ranks: dict[int, _Rank] = field(default_factory=dict)
    is_announced: bool = False

    @property
    def ends(self) -> list[RankEnd]:
        return [rank.end for rank in self.ranks.values() if rank.end is not None]

    @property
    def alive(self) -> list[_Rank]:
        return [rank for rank in self.ranks.values() if rank.end is None]

    @property
    def is_over(self) -> bool:
        return len(self.ends) == self.num_ranks


class Supervisor:
    """Passes each signal on to each rank exactly once, and finds out which rank ended the run.

    `poll` is called again and again by the main thread, `begin` by the one that starts the ranks.
    """

    def __init__(self, run_dir: Path) -> None:
        self.requests: list[tuple[int, float]] = []  # signals that the launcher got, and when
        self.attempts: list[_Attempt] = []
        self.has_killed = False
        self.reason = ""  # why the ranks were started again
        self._run_dir = run_dir
        self._lock = threading.Lock()

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Take note of a signal; `poll` passes it on, to a rank that is yet to start as well."""
        self.requests.append((signum, time.monotonic()))

    def begin(self, num_ranks: int) -> Path:
        """Note that all local ranks are about to start; return the folder for their records."""
        if self.attempts:
            self.poll()
            self.announce()
            self.reason = self._explain_end()
        records = self._run_dir / f"attempt_{len(self.attempts)}"
        records.mkdir()
        with self._lock:
            self.attempts.append(_Attempt(records, num_ranks))
        return records

    def poll(self) -> None:
        """Look at the ranks, and pass on to them what came since."""
        with self._lock:
            if not self.attempts:
                return
            attempt = self.attempts[-1]
            if len(attempt.ranks) < attempt.num_ranks:
                for path in attempt.records.glob("[!.]*.started"):
                    start = read_start(path)
                    attempt.ranks.setdefault(start.rank, _Rank(start))
            for rank in attempt.alive:
                record = attempt.records / f"{rank.start.rank}.ended"
                if record.exists():
                    rank.end = read_end(record)
            must_kill = self._must_kill(attempt)
            for rank in attempt.alive:
                if must_kill:
                    self.has_killed = True
                    _send(rank.start.pid, signal.SIGKILL)
                for signum, _ in self.requests[rank.num_delivered :]:
                    _send(rank.start.pid, signum)
                    rank.num_delivered += 1

    def note_exit_codes(self, statuses: dict[int, int]) -> None:
        """Take over, for ranks that nobody could write a record of, what the agent saw of them."""
        with self._lock:
            attempt = self.attempts[-1]
            for number, status in statuses.items():
                rank = attempt.ranks.setdefault(number, _Rank(RankStart(number, attempt.num_ranks, 0, None)))
                if rank.end is None:
                    rank.end = end_of_process(rank.start, time.time(), status)

    @property
    def must_leave(self) -> bool:
        """Whether to wait no longer for the agents of other machines: none of our ranks is left to save anything."""
        if not self.requests:
            return False
        if not self.attempts:
            return True
        attempt = self.attempts[-1]
        if not attempt.is_over:
            return False
        ended = max(end.time for end in attempt.ends)
        asked_again = any(time.time() - (time.monotonic() - when) > ended for _, when in self.requests)
        in_order = all(end.kind in ("done", "stopped") for end in attempt.ends)
        return asked_again or (not in_order and time.time() - ended > _KILL_AFTER_S)

    def announce(self, *, settled: bool = True) -> None:
        """Show the error that ended the last attempt, once.

        Args:
            settled: whether everything is known; else what may still change is left for later.
        """
        if self.requests or not self.attempts or self.attempts[-1].is_announced:
            return
        attempt = self.attempts[-1]
        first = find_first(attempt.ends)
        if first is None or first.kind in ("stopped", "aborted"):
            return
        if not settled and (first.kind == "lost" or time.time() - first.time < _SETTLE_S):
            return
        self._show(attempt, first)

    def conclude(self) -> int:
        """Show what is still to be shown, and return the exit code of the run."""
        self.poll()
        self.announce()
        attempt = self.attempts[-1] if self.attempts else None
        first = find_first(attempt.ends) if attempt else None
        if not self.requests:
            return EXIT_FAILED if first and first.kind == "lost" else first.code if first else 0
        asked = 128 + self.requests[0][0]
        if attempt is None or first is None:
            # A run that was over before it noticed the request is a finished one.
            return 0 if attempt and attempt.is_over else asked
        if self.has_killed:
            sys.stderr.write("The ranks did not stop, and were killed.\n")
        elif first.kind == "failed" or (first.kind == "killed" and first.code != asked):
            if not attempt.is_announced:
                self._show(attempt, first)
            return first.code
        # A rank that was stopped takes the connection away from others, which says nothing about the run.
        stops = [end for end in sorted(attempt.ends, key=lambda end: end.time) if end.code in STOP_CODES]
        return stops[0].code if stops else asked

    def _explain_end(self) -> str:
        """Return in a few words why the last attempt ended."""
        first = find_first(self.attempts[-1].ends)
        if first is None:
            return "another machine began again"
        return f"rank {first.rank} " + {
            "killed": f"was killed by signal {first.code - 128}",
            "lost": "lost the connection to another machine",
        }.get(first.kind, f"ended with exit code {first.code}")

    def _show(self, attempt: _Attempt, first: RankEnd) -> None:
        attempt.is_announced = True
        start = attempt.ranks[first.rank].start
        text = explain(first, attempt.ends, start if start.pid else None, socket.gethostname())
        lines = [
            paint("error:", "red", sys.stderr) + line[len("error:") :] if line.startswith("error: ") else line
            for line in text.split("\n")
        ]
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()

    def _must_kill(self, attempt: _Attempt) -> bool:
        interrupts = [when for signum, when in self.requests if signum == signal.SIGINT]
        if len(interrupts) >= 3 or (
            len(interrupts) == 2 and time.monotonic() - interrupts[1] > _KILL_AFTER_S
        ):
            return True
        return not self.requests and any(
            end.kind == "aborted" and time.time() - end.time > _KILL_AFTER_ABORT_S for end in attempt.ends
        )


def _send(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended just now
        os.kill(pid, signum)
