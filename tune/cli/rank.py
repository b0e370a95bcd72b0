"""One rank of a run: the process that the launcher starts, in which the recipe's file runs.

It sees to it that the rank never outlives the launcher, that only rank 0 writes to the terminal, and that the launcher
learns when and how the rank ended. The recipe notices nothing of it: it runs as `python FILE ARGUMENTS` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tune.cli.exit_codes import EXIT_INTERRUPTED, exit_code_of
from tune.cli.rank_report import (
    STOP_CODES,
    STOP_SIGNALS,
    RankEnd,
    RankStart,
    end_of_process,
    read_end,
    write_record,
)
from tune.cli.run_file import run_file
from tune.config.recipe_main import leave_errors_to_caller
from tune.errors import TuneError
from tune.utils.lost_connection import is_lost_connection

# The variable that tells a rank what it is to do, as JSON.
RANK_VARIABLE = "TUNE_RANK"
_PR_SET_PDEATHSIG = 1
_STUCK_AFTER_S = 5.0
_NOTICED_WITHIN_S = 0.2
_LEAVE_WITHIN_S = 30  # a failed rank, whose libraries may wait for peers on the way out


class _StoppedEarly(SystemExit):
    """A request to stop that came before the recipe was ready to finish a step, or after its last one."""


def main() -> int:
    """Run one rank and return the exit code for the launcher's agent: 0 also after a stop on request.

    The rank is a child of this process, which does nothing but wait for it: a rank that is killed cannot say so.
    """
    task = json.loads(os.environ.pop(RANK_VARIABLE))
    offset = _redirect(task["log"])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    record = Path(task["records"]) / f"{rank}.ended"
    own_id = os.getpid()
    child = os.fork()
    if child:
        return _wait_for(RankStart(rank, world_size, child, task["log"], offset), record, task["launcher"])
    _die_with(own_id)
    for signum in STOP_SIGNALS:
        if signum != signal.SIGINT:  # that one is a KeyboardInterrupt, as everywhere in Python
            signal.signal(signum, _stop_early)
    faulthandler.enable()
    _end_when_stuck(record, rank)
    start = RankStart(rank, world_size, os.getpid(), task["log"], offset)
    write_record(record.with_suffix(".started"), start)
    end = _run(rank, Path(task["file"]), task["arguments"], task["is_own"])
    # A signal that comes from here on must not turn a finished rank into one that was stopped.
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    if task["log"] is not None and end.text:
        with contextlib.suppress(OSError):  # the log's disk may be full
            sys.stderr.write(end.text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    write_record(record, end)
    if end.kind in ("failed", "lost"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LEAVE_WITHIN_S)
    return end.code


def _wait_for(start: RankStart, record: Path, launcher: int) -> int:
    """Wait for the rank's process, write down its end where it could not, and return the code for the agent."""
    for signum in STOP_SIGNALS:  # the rank gets them itself
        signal.signal(signum, signal.SIG_IGN)
    _die_with(launcher)
    _, status = os.waitpid(start.pid, 0)
    if not record.exists():
        # What other ranks say of this end, they noticed a moment after it, but perhaps before this line.
        before = time.time() - _NOTICED_WITHIN_S
        write_record(record, end_of_process(start, before, os.waitstatus_to_exitcode(status)))
    end = read_end(record)
    # For any code but 0 the agent ends the other ranks, and after a request to stop one of them may be saving.
    return 0 if end.kind in ("done", "stopped", "aborted") else end.code


def _run(rank: int, file: Path, arguments: list[str], is_own: bool) -> RankEnd:
    """Run the recipe and return how it ended."""
    leave_errors_to_caller()
    try:
        run_file(file, arguments, is_own=is_own)
        return RankEnd(rank, time.time(), "done", 0)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - whatever a recipe ends with
        ended = time.time()
        # Only the launcher knows whether this error is the one to show: it is kept, not printed.
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = exit_code_of(error, file.resolve() if is_own else None) & 0xFF
        return RankEnd(rank, ended, _kind_of(error, code), code, said.getvalue())


def _kind_of(error: BaseException, code: int) -> str:
    if code == 0:
        return "done"
    if isinstance(error, (KeyboardInterrupt, _StoppedEarly)):
        return "aborted"
    if code in STOP_CODES and not isinstance(error, SystemExit):  # what a library made of one of these
        return "aborted"
    if isinstance(error, SystemExit) and code in STOP_CODES:
        by_hand = code == EXIT_INTERRUPTED and isinstance(error.__context__, KeyboardInterrupt)
        return "aborted" if by_hand else "stopped"
    chain: BaseException | None = error
    while chain is not None and not isinstance(error, TuneError):  # what is explained is no such thing
        if is_lost_connection(str(chain)):
            return "lost"
        chain = chain.__cause__ or chain.__context__
    return "failed"


def _stop_early(signum: int, frame: FrameType | None) -> NoReturn:
    raise _StoppedEarly(128 + signum)


def _end_when_stuck(record: Path, rank: int) -> None:
    """See to it that a request to stop is heeded while the main thread waits for a peer, deep in a library.

    Python calls handlers between two of its instructions, which may be many minutes away. Once the recipe has taken
    the signals over there may be a step to save, and nothing is cut short.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ours = (_stop_early, signal.default_int_handler)

    def watch() -> None:
        while signums := os.read(reader, 64):
            asked = [signum for signum in signums if signum in STOP_SIGNALS]
            if asked and signal.getsignal(asked[0]) in ours:
                time.sleep(_STUCK_AFTER_S)
                if signal.getsignal(asked[0]) in ours:  # and not ignored: then the rank is on its way out
                    write_record(record, RankEnd(rank, time.time(), "aborted", 128 + asked[0]))
                    os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    # A helper process that the recipe forks must not speak for the rank.
    os.register_at_fork(after_in_child=_forget_signals)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is _stop_early:
            signal.signal(signum, signal.SIG_DFL)


def _die_with(parent: int) -> None:
    """End this process with its parent, however that one ends: nobody else would ever end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it was gone before it could be watched
        os._exit(128 + signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _redirect(log: str | None) -> int:
    """Take the terminal away from all ranks but the first; return where in the log this rank begins."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if log is None:
        return 0
    # Appending: an earlier run's output stays, and so does that of another run which holds the directory now.
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # as on a full disk; how the rank ends is told without a log, too
        file = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):
        print(f"--- rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, {now}")
    offset = os.fstat(file).st_size
    os.close(file)
    return offset
