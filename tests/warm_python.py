"""Python programs in processes of their own that need no start from nothing: importing torch takes seconds each time.

`Popen` and `run` are subprocess's. What they start is forked from a process that has imported what a run needs and
has done nothing else: it has its own pid, streams, folder, environment, session and signals, is a child of the
caller, and runs `-m MODULE`, `-c CODE` or a file as `__main__`. What cannot be had this way (another setting of the
interpreter, say) is started from nothing. A launcher's ranks are forked likewise, from a process below it.
Only the start is another: tests of imports, of hash seeds and of the start itself use subprocess.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READ_AT_START = (
    *("PYTHON", "TRITON_", "TORCH_LOGS", "TORCHDYNAMO_"),
    *("LD_", "MALLOC_", "LANG", "LC_"),
)
PR_SET_CHILD_SUBREAPER = 36
ENVIRONMENT = dict(os.environ)  # before any test changes it
SIGNALS = {signum for signum in signal.valid_signals() if signum not in (signal.SIGKILL, signal.SIGSTOP)}


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def read_at_start(environment: Any) -> dict[str, str]:
    """Return what an interpreter and its libraries read once; the import path is set anew for each program."""
    names = (name for name in environment if name.startswith(READ_AT_START) and name != "PYTHONPATH")
    return {name: environment[name] for name in names}


def name_of(function: Any) -> str | None:
    """Return where another process finds a function of the tests' modules, and None for any other."""
    module, name = function.__module__, getattr(function, "__qualname__", "<")
    return f"{module}:{name}" if module.startswith("tests.") and "<" not in name else None


class Warmed:
    """A connection to the process that forks, which is a child of this one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.lock = connection, threading.Lock()
        self.owner, self.settings = os.getpid(), read_at_start(ENVIRONMENT)

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """Return the pid of a new child that does what was asked."""
        with self.lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1)  # whose parent ends becomes a child of this process
            try:
                socket.send_fds(self.connection, [json.dumps(request).encode()], streams)
                return int(self.connection.recv(32))
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0)


start_from_nothing = subprocess.Popen._execute_child  # type: ignore[attr-defined]


class WarmPopen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is forked where it can be."""

    warmed: Warmed | None = None

    def _execute_child(  # type: ignore[override]
        self,
        args,
        executable,
        preexec_fn,
        close_fds,
        pass_fds,
        cwd,
        env,
        startupinfo,
        creationflags,
        shell,
        *others,
    ):
        *ends, _restore_signals, gid, gids, uid, umask, start_new_session, process_group = others
        c_in, _, _, c_out, _, c_err = ends
        before = name_of(preexec_fn) if preexec_fn else ""
        is_plain = not (pass_fds or shell or executable) and (gid, gids, uid, umask) == (None, None, None, -1)
        warmed, environment = self.warmed, dict(os.environ if env is None else env)
        is_python = isinstance(args, list | tuple) and args[0] == sys.executable and len(args) > 1
        if not (
            warmed
            and warmed.owner == os.getpid()
            and warmed.settings == read_at_start(environment)
            and (is_plain and is_python and before is not None)
            and os.path.isdir(cwd or ".")
        ):
            inherited = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo)
            start_from_nothing(self, *inherited, creationflags, shell, *others)
            return
        request = {
            "words": [os.fspath(word) for word in args[1:]],
            "cwd": os.path.abspath(cwd or "."),
            "environment": environment,
            "before": before,
            "session": start_new_session,
            "group": process_group,
            "ignored": [signum for signum in SIGNALS if signal.getsignal(signum) is signal.SIG_IGN],
            "mask": [int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        }
        self.pid = warmed.fork(
            request, [end if end != -1 else n for n, end in enumerate((c_in, c_out, c_err))]
        )
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


@functools.cache
def warmed_here() -> Warmed | None:
    """Start the process that forks, once; there is none where the kernel is another."""
    if sys.platform != "linux":
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(__file__).with_name("warm_server.py")), str(theirs.fileno())]
    # Its own libraries start no threads: they would be missing in what it forks.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.Popen(command, env={**ENVIRONMENT, **threads}, pass_fds=(theirs.fileno(),), cwd=ROOT)
    theirs.close()
    return Warmed(ours)


@contextlib.contextmanager
def all_starts() -> Iterator[None]:
    """In here, fork also what others start by subprocess."""
    import pytest  # not in what is forked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "warmed", warmed_here(), raising=False)
        patch.setattr(subprocess.Popen, "_execute_child", WarmPopen._execute_child)
        yield


def Popen(args: list[Any], **options: Any) -> subprocess.Popen[Any]:
    WarmPopen.warmed = warmed_here()
    return WarmPopen(args, **options)


def run(args: list[Any], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run to the end, as subprocess.run does."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given, seconds, check = (options.pop(name, None) for name in ("input", "timeout", "check"))
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(given, timeout=seconds)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, args, out, err)
    return subprocess.CompletedProcess(args, process.returncode, out, err)
