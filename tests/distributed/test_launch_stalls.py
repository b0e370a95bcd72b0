"""A rank that stands still is told of, with the stacks of all ranks, and ended where a limit is set."""

from __future__ import annotations

from pathlib import Path

from launch_runs import is_alive

STALLING = """
import os, pathlib, time
import torch.distributed as dist
from tune.training.signals import StopRequest
from tune.utils.mesh import init_mesh
import torch

rank = int(os.environ["RANK"])
mesh = init_mesh(torch.device("cpu"))

def stand_still():
    pathlib.Path(f"rank_{rank}.txt").write_text(f"pid {os.getpid()}\\n")
    while True:
        time.sleep(0.1)

with StopRequest(mesh) as stop:
    for step in range(3):
        assert not stop.agreed()
    if rank == 1:
        stand_still()
    pathlib.Path(f"rank_{rank}.txt").write_text(f"pid {os.getpid()}\\n")
    stop.agreed()
"""


def test_ranks_that_stand_still_are_told_of_and_ended(start, tmp_path: Path) -> None:
    (tmp_path / "stalling.py").write_text(STALLING)
    limits = ("--stall_warning", "2", "--stall_timeout", "8")
    run = start("run", "--nproc_per_node", "2", *limits, "stalling.py")
    pids = run.pids()
    code, _, err = run.end()
    assert code == 1
    assert err.count("no rank here has finished a step for ") == 1
    assert "(steps so far: rank 0: 4, rank 1: 3). Rank 1 is behind. It may be a long validation" in err
    assert "in agreed" in err  # where rank 0 waits
    assert "error: no step was finished within --stall_timeout: the run was ended\n(rank 1 of 2 on " in err
    log = err.partition("its whole output: ")[2].partition(")")[0]
    assert "in stand_still" in Path(log).read_text()
    assert not any(map(is_alive, pids))
