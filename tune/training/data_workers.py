"""Processes that prepare batches ahead, and what is said when one of them is gone.

They are forked from a server that is as good as empty, never from the run: beside the thread that forks, a run has
others (gloo's, autograd's, one that saves), and a lock that one of these holds stays locked for ever in a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from tune.errors import ConfigError, TrainingError, first_line
from tune.utils.stop_signals import STOP_SIGNALS

__all__ = ["WorkerLoader"]

# What a worker needs, imported once by the server. Nothing of this starts a thread.
_PRELOADED = ["torch.utils.data", "tune.datasets", "tune.training.data_workers"]
_CAN_WAIT_FOR_SIGNALS = hasattr(signal, "sigtimedwait")
_WATCH_EVERY_S = 1.0
_USUAL_CAUSES: dict[int, str] = {
    signal.SIGKILL: ": often the kernel's out-of-memory killer (`dmesg` names its victims); "
    "fewer num_workers need less",
    signal.SIGBUS: ": there is no room in /dev/shm, by which batches come (containers: docker run --shm-size=8g), or a "
    "file was cut short while it was being read; num_workers=0 needs no shared memory",
}


class WorkerLoader(DataLoader[Any]):
    """A loader with worker processes that are kept from epoch to epoch and end with this process.

    Batches are the same as without workers. The server of the workers is started here, so that it is ready when the
    first batch is asked for.

    Args:
        dataset: examples by their number.
        collate_fn: makes a batch of a list of examples.
        num_workers: at least 1.
        settings: further arguments of `DataLoader`.

    Raises:
        ConfigError: the dataset or the function cannot be pickled.
    """

    def __init__(self, dataset: Any, collate_fn: Any, num_workers: int, **settings: Any) -> None:
        uses_main = [
            _uses_main(value, what) for value, what in ((dataset, "dataset"), (collate_fn, "collate_fn"))
        ]
        _start_server()
        super().__init__(
            _Handed(dataset),  # type: ignore[arg-type]  # only workers look into it
            collate_fn=_Handed(collate_fn),  # type: ignore[arg-type]
            num_workers=num_workers,
            multiprocessing_context=_Context(any(uses_main)),
            worker_init_fn=partial(_begin_worker, os.getpid(), util.get_temp_dir()),
            persistent_workers=True,
            **settings,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            self._raise_if_worker_died(error)
            raise

    def _raise_if_worker_died(self, error: RuntimeError) -> None:
        workers: list[BaseProcess] = getattr(self._iterator, "_workers", [])
        for number, worker in enumerate(workers):
            code = worker.exitcode
            if code:
                raise TrainingError(
                    f"data worker {number + 1} of {len(workers)} (process {worker.pid}) {_describe_end(code)}"
                ) from error


class _Handed:
    """A value as workers get it: plainly pickled, so that no tensor in it moves to shared memory."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(self._value),)


class _Context(ForkServerContext):
    """The forkserver's context; it makes workers import the program's main file only where they need it.

    A recipe's file runs as that: not every one can be imported without beginning a second run.
    """

    def __init__(self, imports_main: bool) -> None:
        self.Process = _Worker if imports_main else _WorkerWithoutMain  # type: ignore[misc]

    def get_context(self, method: str | None = None) -> Any:
        """Return this context: what it makes asks for it again."""
        return self


class _Worker(ForkServerProcess):
    """A worker that imports the main file."""


class _WorkerWithoutMain(ForkServerProcess):
    """A worker that does not."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        with _main_without_a_file():
            return ForkServerProcess._Popen(process_obj)


@contextmanager
def _main_without_a_file() -> Iterator[None]:
    """In here multiprocessing takes the main module for one that workers cannot import, and need not."""
    main = sys.modules["__main__"]
    before = main.__spec__
    main.__spec__ = ModuleSpec("__main__", None)
    try:
        yield
    finally:
        main.__spec__ = before


class _Sink:
    """Where a pickle goes that is only tried."""

    names_main = False

    def write(self, data: Any) -> int:
        """Look for the main module's name; the pickler never parts a name."""
        self.names_main |= b"__main__" in bytes(data)
        return len(data)


def _uses_main(value: Any, what: str) -> bool:
    """Return whether a pickled value needs the main module.

    Raises:
        ConfigError: it cannot be pickled.
    """
    sink = _Sink()
    try:
        pickle.dump(value, sink)
    except Exception as error:
        # Objects refuse in every way.
        raise ConfigError(
            f"num_workers: the {what} cannot be handed to worker processes: {first_line(error)}. Use functions and "
            "classes from the top of a module, neither lambdas nor open files; or set num_workers=0."
        ) from error
    main = sys.modules["__main__"]
    if sink.names_main and getattr(main, "__file__", None) is None and main.__spec__ is None:
        raise ConfigError(
            f"num_workers: the {what} is defined in a program without a file, where worker processes cannot find it. "
            "Put it into a module, or set num_workers=0."
        )
    return sink.names_main


def _start_server() -> None:
    """Start the server of workers, unless it runs.

    Signals to the whole process group are the run's to answer: the server, and by it the workers, have them blocked
    from the first moment. Neither finds a module in the working directory, where files may bear any name.
    """
    if not (sys.flags.safe_path or "PYTHONSAFEPATH" in os.environ):
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            _start_server()
        finally:
            del os.environ["PYTHONSAFEPATH"]
        return
    blocked = {*STOP_SIGNALS} - (set() if _CAN_WAIT_FOR_SIGNALS else {signal.SIGTERM})
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()  # it unblocks some of them here
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(run: int, temporary: str, _: int) -> None:
    # Its sockets lie with the run's, where they are cleared when a worker is killed.
    multiprocessing.current_process()._config["tempdir"] = temporary  # type: ignore[attr-defined]
    threading.Thread(target=_end_with, args=(run,), daemon=True).start()


def _end_with(run: int) -> None:
    """End this worker when the run says so, which it does by SIGTERM, or is gone.

    Schedulers send the same signal to every process; the step that is being finished still needs its batches.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        if not _CAN_WAIT_FOR_SIGNALS:
            time.sleep(_WATCH_EVERY_S)
        elif (sent := signal.sigtimedwait({signal.SIGTERM}, _WATCH_EVERY_S)) and sent.si_pid == run:
            break
    os._exit(0)


def _describe_end(code: int) -> str:
    if code > 0:
        return (
            f"ended with exit code {code}; what it wrote above says why. num_workers=0 does without workers."
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have numbers only
        name = f"signal {-code}"
    return f"was killed by {name}{_USUAL_CAUSES.get(-code, '')}."
