"""A process that does what this one asks of it, under the system's limits of memory and time.

What a stranger wrote (a chat template) may run without end or fill the memory. Nothing inside one process bounds that
well, and the system does: the worker has a limit of its address space, and it is killed when an answer takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tune.utils.workers import serve; serve(*json.loads(sys.argv[2]))"
)
_START_SECONDS = 120
_is_serving = False
_job: Callable[..., Any] | None = None


class WorkerLimitError(Exception):
    """A call used up the memory or the time it had, or took its process with it."""


class Worker:
    """A process that runs functions, started with the first call and again after one that had to be ended.

    It is no fork of this process, so it inherits no locks. It ends when this process does, however that ends.

    Args:
        memory_bytes: what a call may allocate, beside what the imported modules take. Linux alone keeps to it.
        seconds: how long a call may take.
        job: pickled, what `run_job` calls: sent once to each process, however often it is called.
    """

    _running: tuple[subprocess.Popen[bytes], Connection[Any, Any]] | None

    def __init__(self, memory_bytes: int | None, seconds: float | None, job: bytes = b"") -> None:
        self.memory_bytes = memory_bytes
        self.seconds = seconds
        self._job = job
        self._forget()
        atexit.register(self.stop)

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Return what a function of a module returns for arguments that can be pickled, or raise what it raises.

        Where this process is itself a worker, the call is made here, under the same limits.

        Raises:
            WorkerLimitError: the call took too much memory or time, or its process died.
            OSError: no process can be started.
        """
        if _is_serving:
            return _call_here(function, args, self.memory_bytes, self.seconds)
        if self._owner != os.getpid():
            self._forget()  # A fork of the process that started the worker must not read the answers meant for it.
        with self._lock:
            is_new = self._running is None
            process, connection = self._running = self._running or self._start()
            answered = False
            try:
                if is_new and self._job:
                    connection.send_bytes(self._job)
                connection.send((function, args))
                if is_new:
                    # Its start and its imports are not what the call takes.
                    _receive(connection, _START_SECONDS)
                is_error, value = _receive(connection, self.seconds)
                answered = not isinstance(value, WorkerLimitError)
            except (EOFError, ConnectionError) as error:
                raise WorkerLimitError(_ended_by(process)) from error
            finally:
                if not answered:
                    self.stop()
        if is_error:
            raise value
        return value  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End the process, if there is one, also while another thread waits for its answer: that raises there."""
        if self._owner == os.getpid() and (running := self._running):
            running[0].kill()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._owner == os.getpid() and self._running:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()
            process.wait()

    def discard(self) -> None:
        """End the process for good: nothing more is called."""
        self.stop()
        atexit.unregister(self.stop)

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._running = None

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
        ours, theirs = Pipe()
        settings = json.dumps([theirs.fileno(), self.memory_bytes, self.seconds, bool(self._job)])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's to answer.
            )
        return process, ours


def run_job(*args: Any) -> Any:
    """Return what the job that this worker was started with returns."""
    assert _job is not None
    return _job(*args)


def serve(file_descriptor: int, memory_bytes: int | None, seconds: float | None, has_job: bool) -> None:
    """Answer calls until the other side is gone."""
    global _is_serving, _job
    _is_serving = True
    connection: Connection[Any, Any] = Connection(file_descriptor)
    is_limited = False
    with contextlib.suppress(EOFError, ConnectionError):
        if has_job:
            _job = connection.recv()
        while True:
            function, args = connection.recv()
            if not is_limited:
                # Only now is everything imported.
                _limit_memory(memory_bytes)
                is_limited = True
                connection.send("ready")
            _limit_time(seconds)
            try:
                answer = (False, function(*args))
            except MemoryError:
                answer = (True, _too_much_memory(memory_bytes))
            except Exception as error:  # noqa: BLE001 (it is raised where the call was made)
                answer = (True, error)
            connection.send(answer)


def _call_here(
    function: Callable[..., R], args: tuple[Any, ...], memory_bytes: int | None, seconds: float | None
) -> R:
    """Make a call in this process, which is a worker, under limits of its own.

    What runs in Python is stopped by a signal. What does not come back to Python ends the process by its limit.
    """
    before = {limit: resource.getrlimit(limit) for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU)}

    def stop(*_: Any) -> None:
        raise WorkerLimitError(f"it takes more than {seconds:g} seconds")

    signal.signal(signal.SIGALRM, stop)
    try:
        _limit_memory(memory_bytes)
        _limit_time(seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)
        return function(*args)
    except MemoryError:
        raise _too_much_memory(memory_bytes) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for limit, values in before.items():
            resource.setrlimit(limit, values)


def _too_much_memory(memory_bytes: int | None) -> WorkerLimitError:
    return WorkerLimitError(
        "there is no memory left for it"
        if memory_bytes is None
        else f"it takes more than {memory_bytes / 2**20:,.0f} MiB of memory"
    )


def _receive(connection: Connection[Any, Any], seconds: float | None) -> Any:
    if not connection.poll(seconds):
        raise WorkerLimitError(f"it takes more than {seconds:g} seconds")
    return connection.recv()


def _limit_memory(num_bytes: int | None) -> None:
    if num_bytes is None:
        return
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + num_bytes)


def _limit_time(seconds: float | None) -> None:
    """Let the system end this process, should nobody be left who waits for it."""
    if seconds is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _ended_by(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "its process no longer answers"
    return (
        f"its process was ended by {signal.Signals(-code).name}"
        if code < 0
        else f"its process ended with code {code}"
    )
