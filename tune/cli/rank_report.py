"""How the processes of a run ended, and which of them ended it.

When one rank dies, the others soon fail, too: their connection to it is lost. What helps is the first real failure,
so each rank writes down when and with what it ended, and the launcher adds what a rank could not say itself.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tune.utils.lost_connection import is_lost_connection

# A finished step, saved because it was asked for by a signal: no failure, and nothing to start again after.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_CODES = frozenset(128 + signum for signum in STOP_SIGNALS)

_USUAL_CAUSES: dict[int, str] = {
    signal.SIGKILL: ": often the kernel's out-of-memory killer (`dmesg` names its victims)",
    signal.SIGBUS: ": a file was cut short while it was being read, or there is no room in /dev/shm",
}
_TAIL_LINES = 15
_TAIL_BYTES = 20_000
# torch.distributed.elastic ends the others of a failed rank with SIGTERM, and after 30 s with SIGKILL.
_ENDED_BY_AGENT_S = 20.0


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended.

    Args:
        rank: its number among all.
        time: seconds since the epoch.
        kind: "done"; "stopped" on request, in order; "aborted" on request, at once; "lost": another rank was gone;
            "failed"; "killed" by a signal that nobody here sent.
        code: its exit code, 128 plus the signal's number where that ended it.
        text: what it has to say: the `error:` block, after a traceback where that helps.
    """

    rank: int
    time: float
    kind: str
    code: int
    text: str = ""


@dataclass(frozen=True)
class RankStart:
    """A rank that has started: its process, and where its output goes (None: to the terminal)."""

    rank: int
    world_size: int
    pid: int
    log: str | None
    log_offset: int = 0


def write_record(path: Path, record: RankEnd | RankStart) -> None:
    """Write a record so that a reader finds all of it or none."""
    staged = path.with_name(f".{path.name}")
    staged.write_text(json.dumps(asdict(record)), encoding="utf-8")
    staged.replace(path)


def read_start(path: Path) -> RankStart:
    """Return the record of a start."""
    return RankStart(**json.loads(path.read_text(encoding="utf-8")))


def read_end(path: Path) -> RankEnd:
    """Return the record of an end."""
    return RankEnd(**json.loads(path.read_text(encoding="utf-8")))


def end_of_process(start: RankStart, time: float, status: int) -> RankEnd:
    """Return the end of a rank that left no record; `status` is negative for a signal, as in `subprocess`."""
    if status >= 0:
        return RankEnd(start.rank, time, "failed" if status else "done", status)
    if -status == signal.SIGABRT and is_lost_connection(read_tail(start)):
        return RankEnd(start.rank, time, "lost", 128 - status)
    return RankEnd(start.rank, time, "killed", 128 - status)


def find_first(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Return the rank that ended the run: the first real failure, else the first that stopped or lost the others.

    None where all are done.
    """
    in_order = sorted(ends, key=lambda end: end.time)
    real = [end for end in in_order if end.kind == "failed" or _is_killed_from_outside(end, in_order)]
    others = [end for end in in_order if end.kind not in ("done", "failed")]
    return next(iter(real or others), None)


def _is_killed_from_outside(end: RankEnd, in_order: Sequence[RankEnd]) -> bool:
    """Tell whether a signal that ended a rank is news, and not the end of what another rank began."""
    earlier = [other for other in in_order if other.kind != "done" and other.time < end.time]
    if end.kind != "killed":
        return False
    if end.code == 128 + signal.SIGTERM:
        return not earlier
    return not earlier or end.time - earlier[0].time < _ENDED_BY_AGENT_S


def read_tail(start: RankStart) -> str:
    """Return the last lines that a rank wrote to its log."""
    if start.log is None:
        return ""
    try:
        with open(start.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start.log_offset, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # A progress bar draws over its own line: only what it showed last is of interest.
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-_TAIL_LINES:])


def explain(first: RankEnd, ends: Sequence[RankEnd], start: RankStart | None, host: str) -> str:
    """Return what the user reads about the rank that ended the run: its error, then which one it was.

    Args:
        first: that rank's end.
        ends: those of all ranks of this machine.
        start: that rank's start, or None where it never got that far.
        host: this machine's name.
    """
    rank = f"rank {first.rank}" + (f" of {start.world_size}" if start else "") + f" on {host}"
    log = f"its whole output: {start.log}" if start and start.log else ""
    if first.kind == "lost" and start and start.world_size > len(ends):
        ranks = "all ranks here" if len(ends) > 1 else rank
        text = f"error: {ranks} lost the connection to the others; the failure itself is on another machine"
        return "\n".join([text, *first.text.strip().split("\n")[-1:], *([f"({log})"] if log else [])])
    if first.text:
        same = len(ends) > 1 and all(end.text == first.text for end in ends)
        who = f"all {len(ends)} ranks on {host} ended with this" if same else f"{rank} failed first"
        return f"{first.text.rstrip()}\n({who}; exit code {first.code}{'; ' + log if log else ''})"
    if first.kind == "killed":
        text = f"error: {rank} was killed by {_signal_name(first.code - 128)}"
        text += _USUAL_CAUSES.get(first.code - 128, "")
    else:
        text = f"error: {rank} ended with exit code {first.code}"
    tail = read_tail(start) if start else ""
    if tail:
        text += "\nits last lines:\n" + "\n".join(f"  {line}" for line in tail.split("\n"))
    return text + (f"\n({log})" if log else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"
