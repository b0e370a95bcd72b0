"""Worker processes that share one job: lists of items go in, results come out in the same order."""

from __future__ import annotations

import io
import os
import pickle
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FunctionType
from typing import Any, Generic, TypeVar

from tune.utils.workers import Worker, WorkerLimitError, run_job

T = TypeVar("T")
R = TypeVar("R")

# Lists for each worker that are waiting or done: enough that none waits for another, and few in memory.
_AHEAD = 3


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool(Generic[T, R]):
    """Processes that are each given the job once, when they get their first items.

    They end with this process, however that ends, and with the pool. Ctrl-C is this process's alone to answer.

    Args:
        job: what `pickle` made of a function of a list of items that imports all it needs.
        num_workers: at least 1.
    """

    def __init__(self, job: bytes, num_workers: int) -> None:
        self._workers = [Worker(None, None, job) for _ in range(num_workers)]
        self._is_closed = False
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def map(self, lists: Iterable[Sequence[T]], on_death: Callable[[T, WorkerLimitError], R]) -> Iterator[R]:
        """Yield what the job returns for each list, in order; what it raises is raised.

        Args:
            lists: taken as they are needed, so that few are in memory.
            on_death: what stands for an item that took its process with it. The others of its list are done again,
                one by one.
        """
        threads = ThreadPoolExecutor(len(self._workers), "worker")
        pending: deque[Future[list[R]]] = deque()
        try:
            for items in lists:
                pending.append(threads.submit(self._run, items, on_death))
                if len(pending) >= _AHEAD * len(self._workers):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            self._is_closed = True
            for worker in self._workers:
                worker.kill()
            threads.shutdown()
            for worker in self._workers:
                worker.discard()

    def _run(self, items: Sequence[T], on_death: Callable[[T, WorkerLimitError], R]) -> list[R]:
        worker = self._idle.get()
        try:
            return [worker.call(run_job, items)]
        except WorkerLimitError as error:
            if self._is_closed:
                raise
            if len(items) == 1:
                return [on_death(items[0], error)]
        finally:
            self._idle.put(worker)
        return [result for item in items for result in self._run([item], on_death)]


def pickled_job(job: Any) -> bytes:
    """Return a job as workers get it, b"" where it cannot be handed to another process."""
    file = io.BytesIO()
    try:
        _JobPickler(file).dump(job)
    except Exception:  # noqa: BLE001 - objects refuse in every way
        return b""
    return file.getvalue()


class _JobPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        # A program's own file may begin a second run where it is imported.
        if isinstance(value, (type, FunctionType)) and value.__module__ == "__main__":
            raise pickle.PicklingError(f"{value.__qualname__} is defined in the program itself")
        return NotImplemented
