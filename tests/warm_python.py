"""Python programs in processes of their own that need no start from nothing: importing torch takes seconds each time.

`Popen` and `run` are subprocess's. What they start is forked from a process that has imported what a run needs and
has done nothing else: it has its own pid, streams, folder, environment, session and signals, is a child of the
caller, and runs `-m MODULE`, `-c CODE` or a file as `__main__`. What cannot be had this way (another setting of the
interpreter, say) is started from nothing. A launcher's ranks are forked likewise, from a process below it.
Only the start is another: tests of imports, of hash seeds and of the start itself use subprocess.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    *(
        "torch._dynamo",
        "torch.distributed.fsdp",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "yaml",
    ),
    *(
        "tune.training",
        "tune.generation",
        "tune.evaluation",
        "tune.report.picture",
        "tune.cli.agent",
        "tune.cli.run",
    ),
    *("sentencepiece", "safetensors.torch", "tune.models.llama2", "tune.config.recipe_main", "tune.cli.rank"),
)
READ_AT_START = (
    *("PYTHON", "TRITON_", "TORCH_LOGS", "TORCHDYNAMO_"),
    *("LD_", "MALLOC_", "LANG", "LC_"),
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ENVIRONMENT = dict(os.environ)  # before any test changes it
LARGEST = 1 << 17  # bytes of a request
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
    command = [sys.executable, __file__, str(theirs.fileno())]
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


# ---- the process that forks


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork whenever asked to; return in the new process, with what it is to do and its streams."""
    while True:
        request, streams, _, _ = socket.recv_fds(connection, LARGEST, 3)
        if not request:
            os._exit(0)
        reader, writer = os.pipe()
        go, gone = os.pipe()
        if (middle := os.fork()) == 0:
            if pid := os.fork():
                os.write(writer, str(pid).encode())
                os._exit(0)
            os.read(go, 1)  # until the caller is the parent
            for end in (reader, writer, go, gone):
                os.close(end)
            connection.close()
            return json.loads(request), streams
        os.waitpid(middle, 0)
        connection.send(os.read(reader, 32))
        os.write(gone, b"!")
        for end in (reader, writer, go, gone, *streams):
            os.close(end)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Take on what a program finds when it starts."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["session"]:
        os.setsid()
    elif request["group"] >= 0:
        os.setpgid(0, request["group"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["before"]:
        module, name = request["before"].split(":")
        getattr(importlib.import_module(module), name)()
    if "RANK" in os.environ:  # the kernel goes on showing the environment of the first start
        Path("/proc/self/comm").write_text(f"rank {os.environ['RANK']}")
    for name, mode, error in (
        ("stdin", "r", "strict"),
        ("stdout", "w", "strict"),
        ("stderr", "w", "backslashreplace"),
    ):
        number = ("stdin", "stdout", "stderr").index(name)
        before = getattr(sys, name)
        stream = open(number, mode, encoding=before.encoding, errors=error, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=name == "stderr" or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    torch = importlib.import_module("torch")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def listen_to_signals(request: dict[str, Any]) -> None:
    for signum in request["ignored"]:
        signal.signal(signum, signal.SIG_IGN)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])


def keep_warm_below() -> tuple[dict[str, Any], list[int]] | None:
    """Let this process fork what it starts, from a copy of how it is now; return what a fork is to do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        for number in range(3):  # its launcher's streams come to an end without it
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        return serve(theirs)
    theirs.close()
    WarmPopen.warmed = Warmed(ours)
    # Modules have taken the class by its name before.
    subprocess.Popen.warmed = WarmPopen.warmed  # type: ignore[attr-defined]
    subprocess.Popen._execute_child = WarmPopen._execute_child  # type: ignore[attr-defined]
    return None


def start(words: list[str], base: list[str]) -> None:
    """Run `python WORDS` in this process; `base` is the import path without what the words and environment add."""
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = [] if words[0] == "-P" else None
    words = words[1:] if words[0] == "-P" else words
    kind, rest = words[0], words[1:]
    if kind == "-m":
        sys.path[:] = [*([os.getcwd()] if first is None else first), *added, *base]
        sys.argv = [kind, *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if kind == "-c":
        where, name, code = "", "<string>", rest[0]
        sys.argv = [kind, *rest[1:]]
    else:
        where, name, code = str(Path(kind).resolve().parent), kind, Path(kind).read_text(encoding="utf-8")
        main.__file__, sys.argv = kind, list(words)
    sys.path[:] = [*([where] if first is None else first), *added, *base]
    sys.modules["__main__"] = main
    exec(compile(code, name, "exec"), main.__dict__)


def leave(error: BaseException) -> NoReturn:
    """End as the interpreter does, but for taking apart thousands of modules, which takes a second."""
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    if not isinstance(error, SystemExit):
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


def main() -> None:
    base = [path for path in sys.path[1:] if path != str(ROOT)]
    for name in PRELOADED:
        importlib.import_module(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()
    request, streams = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request, streams)
    if any(word.startswith(("--nproc", "--nnodes")) for word in request["words"]):
        below = keep_warm_below()
        if below is not None:
            request, streams = below
            become(request, streams)
    try:
        listen_to_signals(request)
        start(request["words"], base)
    except BaseException as error:  # noqa: BLE001 - whatever a program ends with
        leave(error)
    leave(SystemExit(0))


if __name__ == "__main__":
    main()
