"""A worker keeps to its limits, survives what it runs, and never outlives the process it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tune.utils.workers import Worker, WorkerLimitError


@pytest.fixture
def worker():
    worker = Worker(memory_bytes=200 << 20, seconds=2.0)
    yield worker
    worker.stop()


def fail(words):
    raise LookupError(words)


def test_it_answers_and_raises_what_the_call_raised(worker):
    pid = worker.call(os.getpid)
    assert pid != os.getpid()
    assert worker.call(divmod, 17, 5) == (3, 2)
    with pytest.raises(LookupError, match="no such thing"):
        worker.call(fail, "no such thing")
    assert worker.call(os.getpid) == pid


def test_memory_is_limited_and_the_next_call_works(worker):
    with pytest.raises(WorkerLimitError, match="more than 200 MiB of memory"):
        worker.call(bytes, 1 << 30)
    assert len(worker.call(bytes, 1 << 20)) == 1 << 20


def test_time_is_limited_and_the_next_call_works(worker):
    with pytest.raises(WorkerLimitError, match="more than 2 seconds"):
        worker.call(time.sleep, 3600)
    assert worker.call(abs, -7) == 7


def test_a_call_that_ends_its_process_is_told(worker):
    with pytest.raises(WorkerLimitError, match="ended by SIGABRT"):
        worker.call(os.abort)
    with pytest.raises(WorkerLimitError, match="ended with code 3"):
        worker.call(os._exit, 3)
    assert worker.call(abs, -7) == 7


def test_threads_get_their_own_answers(worker):
    wrong = []

    def ask(number):
        wrong.extend(i for i in range(50) if worker.call(divmod, number * 1000 + i, 1000) != (number, i))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_asks_a_process_of_its_own(worker):
    ours = worker.call(os.getpid)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(worker.call(os.getpid)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 99)) not in (ours, os.getpid())
    assert worker.call(os.getpid) == ours
    os.close(reading)
    os.close(writing)


ORPHAN = """
import os, sys, threading, time
from tune.utils.workers import Worker
worker = Worker(memory_bytes=200 << 20, seconds=2.0)
print(worker.call(os.getpid), flush=True)
if sys.argv[1] == "busy":
    threading.Thread(target=worker.call, args=(sum, range(10**15)), daemon=True).start()
time.sleep(3600)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_it_does_not_outlive_a_killed_process(state):
    with subprocess.Popen([sys.executable, "-c", ORPHAN, state], stdout=subprocess.PIPE) as owner:
        worker = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while _is_running(worker):
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def _is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
