"""The process that tests/warm_python.py forks others from: it imports what a run needs, and then waits.

python warm_server.py DESCRIPTOR_OF_A_SOCKET
"""

from __future__ import annotations

import atexit
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
from pathlib import Path
from typing import Any, NoReturn

from tests.warm_python import ROOT, SIGNALS, Warmed, WarmPopen, prctl

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
LARGEST = 1 << 17  # bytes of a request
PR_SET_PDEATHSIG = 1


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
