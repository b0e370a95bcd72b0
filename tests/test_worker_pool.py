"""A pool of workers gives what one process would, in the same order, and names the item that ended one."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tune.utils.worker_pool import WorkerPool, num_cores, pickled_job
from tune.utils.workers import Worker, WorkerLimitError


def squares(numbers):
    for number in numbers:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -1:
            raise LookupError("no such number")
    time.sleep(0.01 * (numbers[0] % 3))  # later lists may be done first
    return [number**2 for number in numbers]


def which_died(number, error):
    return [f"{number} died: {error}"]


def pool(num_workers=2):
    return WorkerPool(pickled_job(squares), num_workers)


def test_results_come_in_order_whoever_is_done_first():
    lists = [list(range(start, start + 3)) for start in range(10, 100, 3)]
    assert list(pool().map(lists, which_died)) == [[n * n for n in numbers] for numbers in lists]


def test_the_item_that_ends_its_process_is_named():
    results = list(pool().map([[1, 2], [6, 7, 8], [9]], which_died))
    assert results == [[1, 4], [36], ["7 died: its process was ended by SIGKILL"], [64], [81]]


def test_what_the_job_raises_is_raised_in_its_place():
    results = pool().map([[1], [2, -1], [3]], which_died)
    assert next(results) == [1]
    with pytest.raises(LookupError, match="no such number"):
        next(results)


def test_few_lists_are_taken_ahead_and_no_process_stays():
    taken = itertools.count()
    lists = ([next(taken)] for _ in range(10_000))
    workers = pool()
    results = workers.map(lists, which_died)
    assert next(results) == [0]
    assert next(taken) <= 7
    processes = [worker._running[0] for worker in workers._workers if worker._running]
    assert processes
    results.close()
    assert all(process.poll() is not None for process in processes)


def test_what_another_process_cannot_import_is_no_job():
    assert pickled_job(lambda: 0) == b""
    assert pickle.loads(pickled_job(squares)) is squares
    assert pickled_job("__main__") != b""
    assert 1 <= num_cores() <= os.cpu_count()


def loop_in_python():
    while True:
        pass


def loop_in_c():
    return sum(range(10**15))


def call_inside(function, memory_bytes, seconds):
    try:
        return Worker(memory_bytes, seconds).call(function)
    except WorkerLimitError as error:
        return str(error)


def allocate():
    return len(bytes(1 << 30))


def test_inside_of_a_worker_each_call_has_its_own_limits():
    worker = Worker(None, None)
    try:
        assert worker.call(call_inside, loop_in_python, None, 0.2) == "it takes more than 0.2 seconds"
        assert worker.call(call_inside, allocate, 1 << 28, 60.0) == "it takes more than 256 MiB of memory"
        assert worker.call(allocate) == 1 << 30
        with pytest.raises(WorkerLimitError, match="ended by SIGXCPU"):
            worker.call(call_inside, loop_in_c, None, 0.2)
        assert worker.call(abs, -3) == 3
    finally:
        worker.discard()


INTERRUPTED = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import test_worker_pool
from tune.utils.worker_pool import WorkerPool, pickled_job
pool = WorkerPool(pickled_job(test_worker_pool.wait_for_ever), 2)
threading.Timer(0.01, lambda: None).start()
print("begin", flush=True)
try:
    list(pool.map([[0], [1]], None))
except KeyboardInterrupt:
    print("stopped", [worker._running for worker in pool._workers], threading.active_count())
"""


def wait_for_ever(numbers):
    with open(f"/proc/{os.getppid()}/fd/1", "w", encoding="ascii") as out:
        out.write(f"{os.getpid()}\n")
    threading.Event().wait()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_ctrl_c_ends_the_workers_and_nothing_else_is_said():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout.readline() == "begin\n"
        workers = [int(owner.stdout.readline()) for _ in range(2)]
        owner.send_signal(signal.SIGINT)
        out, err = owner.communicate()
    assert (out, err) == ("stopped [None, None] 1\n", "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
