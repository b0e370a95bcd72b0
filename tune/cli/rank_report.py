"""How the processes of a run ended, and which of them ended it.

When one rank dies, the others soon fail, too: their connection to it is lost. What helps is the first real failure.
A rank that fails writes it to the file that torch's agent names for that; the agent adds how each process ended.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tune.utils.lost_connection import is_lost_connection
from tune.utils.stop_signals import STOP_SIGNALS

# A finished step, saved because it was asked for by a signal: no failure, and nothing to start again after.
STOP_CODES = frozenset(128 + signum for signum in STOP_SIGNALS)
RUN_HEADING = "--- rank "  # how the lines of one run begin in a log that holds several

_USUAL_CAUSES: dict[int, str] = {
    signal.SIGKILL: ": often the kernel's out-of-memory killer (`dmesg` names its victims)",
    signal.SIGBUS: ": a file was cut short while it was being read, or there is no room in /dev/shm",
}
_TAIL_LINES = 15
_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended.

    Args:
        rank: its number among all.
        timestamp: seconds since the epoch.
        kind: "done"; "stopped" on request, in order; "aborted" on request, at once; "lost": another rank was gone;
            "failed"; "killed" by a signal.
        code: its exit code, 128 plus the signal's number where that ended it.
        message: what it has to say: the `error:` block, after a traceback where that helps.
    """

    rank: int
    timestamp: float
    kind: str
    code: int
    message: str = ""


def write_end(path: Path, end: RankEnd) -> None:
    """Write how a rank ended so that a reader finds all of it or nothing."""
    staged = path.with_name(f".{path.name}")
    staged.write_text(json.dumps(asdict(end)), encoding="utf-8")
    staged.replace(path)


def read_end(path: Path, rank: int, log: Path | None, status: int, timestamp: float) -> RankEnd:
    """Return how a rank ended: what it wrote, or else what its process shows.

    Args:
        path: the file that `write_end` was given, if the rank came that far.
        rank: its number among all.
        log: where its output went; None for the terminal.
        status: the exit code, negative for a signal, as in `subprocess`.
        timestamp: when the agent saw the end.
    """
    if path.exists():
        return RankEnd(**json.loads(path.read_text(encoding="utf-8")))
    if status >= 0:
        return RankEnd(rank, timestamp, "failed" if status else "done", status)
    is_lost = status == -signal.SIGABRT and is_lost_connection(read_tail(log))
    return RankEnd(rank, timestamp, "lost" if is_lost else "killed", 128 - status)


def find_first(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Return the rank that ended the run: the first real failure, else the first that stopped or lost the others.

    None where all are done.
    """

    def order(end: RankEnd) -> tuple[int, float]:
        if end.kind in ("failed", "killed"):
            return (0 if is_certain(end) else 1), end.timestamp
        return 2, end.timestamp

    return min((end for end in ends if end.kind != "done"), key=order, default=None)


def is_certain(end: RankEnd) -> bool:
    """Tell whether a rank failed by itself: gloo and NCCL abort where a peer has gone."""
    return end.kind in ("failed", "killed") and end.code != 128 + signal.SIGABRT


def read_tail(log: Path | None) -> str:
    """Return the last lines that a rank wrote to its log in this run."""
    if log is None:
        return ""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # A progress bar draws over its own line: only what it showed last is of interest.
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    headings = [number for number, line in enumerate(lines) if line.startswith(RUN_HEADING)]
    return "\n".join(lines[headings[-1] + 1 if headings else 0 :][-_TAIL_LINES:])


def explain(first: RankEnd, ends: Sequence[RankEnd], world_size: int, log: Path | None, host: str) -> str:
    """Return what the user reads about the rank that ended the run: its error, then which one it was.

    Args:
        first: that rank's end.
        ends: those of all ranks of this machine, or that one alone where others have not ended yet.
        world_size: the number of ranks on all machines.
        log: where that rank's output went; None for the terminal.
        host: this machine's name.
    """
    rank = f"rank {first.rank} of {world_size} on {host}"
    output = f"its whole output: {log}" if log else ""
    if first.kind == "lost" and world_size > len(ends):
        ranks = "all ranks here" if len(ends) > 1 else rank
        text = f"error: {ranks} lost the connection to the others; the failure itself is on another machine"
        return f"{text}\n({output})" if output else text
    if first.message:
        same = len(ends) > 1 and all(end.message == first.message for end in ends)
        who = f"all {len(ends)} ranks on {host} ended with this" if same else f"{rank} failed first"
        return f"{first.message.rstrip()}\n({who}; exit code {first.code}{'; ' + output if output else ''})"
    if first.kind == "killed":
        text = f"error: {rank} was killed by {_signal_name(first.code - 128)}"
        text += _USUAL_CAUSES.get(first.code - 128, "")
    else:
        text = f"error: {rank} ended with exit code {first.code}"
    tail = read_tail(log)
    if tail:
        text += "\nits last lines:\n" + "\n".join(f"  {line}" for line in tail.split("\n"))
    return text + (f"\n({output})" if output else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"
