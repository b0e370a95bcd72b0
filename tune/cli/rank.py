"""One rank of a run: the process that torch's agent starts, in which the recipe's file runs.

It sees to it that the rank never outlives the launcher, that only rank 0 writes to the terminal, and that the launcher
learns how the rank ended. The recipe notices nothing of it: it runs as `python FILE ARGUMENTS` does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

from tune.cli.exit_codes import exit_code_of
from tune.cli.rank_report import RUN_HEADING, STOP_CODES, RankEnd, write_end
from tune.cli.recipe_lookup import add_to_path
from tune.cli.run_file import Program, run_file
from tune.cli.stall import STACKS_SIGNAL, heartbeat_path
from tune.cli.terminal import say
from tune.config.recipe_main import leave_errors_to_caller
from tune.errors import TuneError, causes, first_line
from tune.utils.heartbeat import start_heartbeat
from tune.utils.lost_connection import is_lost_connection
from tune.utils.ranks import get_rank, get_world_size
from tune.utils.stop_signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1
_LEAVE_WITHIN_S = (
    5  # before the launcher kills it: a failed rank, whose libraries may wait for peers on the way out
)


def main() -> NoReturn:
    """Run one rank, and exit with 0 also after a step that was saved on request: the agent ends all ranks otherwise."""
    with open(sys.argv[1], "rb") as file:
        launcher, log_dir, path, is_own = pickle.load(file)
        _die_with(launcher)
        has_log = _redirect(log_dir)
        if is_own:
            add_to_path(path)  # the params class may lie beside the recipe
        program: Program = pickle.load(file)
    # Sockets of multiprocessing: what a killed rank leaves behind goes with the launcher's folder.
    multiprocessing.current_process()._config["tempdir"] = str(Path(sys.argv[1]).parent)  # type: ignore[attr-defined]
    error_file = Path(os.environ.pop("TORCHELASTIC_ERROR_FILE"))  # torch's name for it
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    start_heartbeat(heartbeat_path(Path(sys.argv[1]).parent, int(os.environ["LOCAL_RANK"])))
    end = _run(program)
    # A signal that comes from here on must not turn a finished rank into one that was stopped.
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    if has_log and end.message:
        with contextlib.suppress(OSError):  # the log's disk may be full
            say(end.message, sys.stderr)
    with contextlib.suppress(OSError):  # and so may this one: the exit code remains
        write_end(error_file, end)
    if end.kind in ("failed", "lost"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LEAVE_WITHIN_S)
    # As multiprocessing ends its processes: a library's destructors could still abort one that is done.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0 if end.kind == "stopped" else end.code)


def _run(program: Program) -> RankEnd:
    """Run the recipe and return how it ended."""
    leave_errors_to_caller()
    try:
        # The launcher has them blocked until here, so that none meets a half-started interpreter.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        run_file(program)
        return RankEnd(get_rank(), time.time(), "done", 0)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - whatever a recipe ends with
        ended = time.time()
        # Only the launcher knows whether this error is the one to show: it is kept, not printed.
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = exit_code_of(error, program.own_file) & 0xFF
        kind, message = _kind_of(error, code), said.getvalue()
        if kind == "lost":
            # No bug to be reported: where it came from is of use in a log at most.
            if get_rank():
                traceback.print_exception(error)
            message = f"error: the connection to another rank was lost: {first_line(error)}\n"
        return RankEnd(get_rank(), ended, kind, code, message)


def _kind_of(error: BaseException, code: int) -> str:
    if code == 0:
        return "done"
    if code in STOP_CODES:  # else than by an exit of its own: at once, or what a library made of Ctrl-C
        return "stopped" if isinstance(error, SystemExit) else "aborted"
    is_lost = not isinstance(error, TuneError)  # what is explained is no such thing
    is_lost = is_lost and any(is_lost_connection(str(link)) for link in causes(error))
    return "lost" if is_lost else "failed"


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


def _redirect(log_dir: Path) -> bool:
    """Take the terminal away from all ranks but the first; return whether this one writes to a log."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if get_rank() == 0:
        return False
    # Appending: an earlier run's output stays, and so does that of another run which holds the directory now.
    try:
        log = os.open(log_path(log_dir, get_rank()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # as on a full disk; how the rank ends is told without a log, too
        log = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    with contextlib.suppress(OSError):
        print(f"{RUN_HEADING}{get_rank()} of {get_world_size()}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    return True


def log_path(log_dir: Path, rank: int) -> Path:
    """Return the file that holds the output of a rank other than 0."""
    return log_dir / f"rank_{rank}.log"
