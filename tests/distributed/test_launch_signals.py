"""Signals to the launcher reach each rank exactly once, and no save is cut short."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from launch_runs import ROOT, STEPS, is_alive

TWO = ("run", "--nproc_per_node", "2", "steps.py")


def test_ctrl_c_at_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execvpe(sys.executable, [sys.executable, "-m", "tune", *TWO, "slow"], environment)
    shown = b""
    while b"terminal" not in shown or not shown.endswith(b"\n"):
        assert select.select([terminal], [], [], 400)[0], shown
        shown += os.read(terminal, 1000)
    until = time.monotonic() + 400
    while not (tmp_path / "rank_1.txt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.write(terminal, b"\x03")  # the kernel tells the whole foreground process group
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"terminal True True" in shown  # a progress bar draws itself there
    for rank in (0, 1):
        assert (tmp_path / f"rank_{rank}.txt").read_text().split("\n")[1:] == ["SIGINT", "saved", ""]


@pytest.mark.parametrize(("signum", "restarts"), [(signal.SIGTERM, "0"), (signal.SIGUSR1, "2")])
def test_a_stop_on_request_is_no_failure(start, signum: signal.Signals, restarts: str) -> None:
    run = start(*TWO, "--max_restarts", restarts, "slow")
    run.pids()
    run.process.send_signal(signum)
    code, out, err = run.end()
    assert code == 128 + signum
    for rank in (0, 1):
        assert run.notes(rank)[1:] == [signum.name, "saved"]
    assert out == "terminal False True\n"
    assert err.count("\n") == 1  # where the logs are
    assert "error" not in err


def test_a_second_ctrl_c_stops_at_once_and_a_third_kills(start) -> None:
    run = start(*TWO, "--max_restarts", "1", "long")
    run.pids()
    for count in (1, 2):
        run.process.send_signal(signal.SIGINT)
        run.wait_for(lambda: all(run.notes(rank)[1:] == ["SIGINT"] * count for rank in (0, 1)))  # noqa: B023
    assert run.end()[0] == 130
    assert "saved" not in run.notes(0) + run.notes(1)


def test_a_third_ctrl_c_kills_what_does_not_listen(start) -> None:
    run = start(*TWO, "deaf")
    pids = run.pids()
    for count in (1, 2, 3):
        run.process.send_signal(signal.SIGINT)
        if count < 3:
            run.wait_for(lambda: all(run.notes(rank)[1:] == ["SIGINT"] * count for rank in (0, 1)))  # noqa: B023
    code, _, err = run.end()
    assert code == 130
    assert "did not stop, and were killed" in err
    assert not any(map(is_alive, pids))


def test_a_run_that_is_still_being_set_up_ends_with_the_signal(start) -> None:
    run = start(*TWO, "--max_restarts", "1", "early")
    pids = run.pids()
    run.process.send_signal(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 143
    assert "error" not in err
    assert not any(map(is_alive, pids))


# Rank 0 waits in gloo, where Python's handler of Ctrl-C is not called, for a peer that is stopped.
WAITING = """
import os, pathlib, time
rank = os.environ["RANK"]
pathlib.Path(f"rank_{rank}.txt").write_text(f"pid {os.getpid()}\\n")
if rank == "1":
    time.sleep(300)
import torch.distributed
pathlib.Path("ready").touch()
torch.distributed.init_process_group("gloo")
"""


def test_a_rank_that_waits_in_a_library_is_stopped_as_well(start, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    run = start("run", "--nproc_per_node", "2", "waiting.py")
    pids = run.pids()
    run.wait_for((tmp_path / "ready").exists)
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.end()
    assert code == 130
    assert "error" not in err
    assert not any(map(is_alive, pids))


def test_ranks_die_with_their_launcher(start) -> None:
    run = start(*TWO, "slow")
    pids = run.pids()
    assert all(map(is_alive, pids))
    run.process.kill()
    run.wait_for(lambda: not any(map(is_alive, pids)), seconds=5.0)
    assert "saved" not in run.notes(0)
