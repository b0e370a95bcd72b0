"""Runs of `tune run` with many real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]

# A recipe's params, beside a recipe that reads them: enough for the launcher to know where its logs go.
PARAMS = """
from dataclasses import dataclass
from tune.config.params import check_params, param

@dataclass(frozen=True)
class MineParams:
    output_dir: str = param("out", help="Where it goes.")
    resume_from_checkpoint: bool = param(False, help="Whether to go on.")
    mode: str = param("", help="What to do.")

    def __post_init__(self) -> None:
        check_params(self)
"""

# What a recipe has to do about signals: finish the step, save, and say so. It notes what it got, and when it saved.
STEPS = """
import os, signal, sys, time

rank = os.environ["RANK"]
mode, got = sys.argv[1], []

def note(word):
    with open(f"rank_{rank}.txt", "a") as file:
        file.write(word + "\\n")

def on_signal(signum, frame):
    note(signal.Signals(signum).name)
    got.append(signum)
    if got.count(signal.SIGINT) == 2 and mode != "deaf":
        raise KeyboardInterrupt

if mode != "early":
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, on_signal)
note(f"pid {os.getpid()}")
print("terminal", sys.stderr.isatty(), os.getsid(0) == os.getpid(), flush=True)
until = time.monotonic() + 300
while time.monotonic() < until and (not got or mode == "deaf"):
    time.sleep(0.02)
if mode == "long":
    time.sleep(30)
if rank == "0":
    time.sleep(1.0)  # rank 0 writes a large file, while the other is done
note("saved")
sys.exit(128 + got[0])
"""


class Run:
    """A `tune run` in a process group of its own, and what its ranks noted."""

    def __init__(self, folder: Path, words: tuple[str, ...]) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        environment.pop("OMP_NUM_THREADS", None)
        self.process = warm_python.Popen(
            [sys.executable, "-m", "tune", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def notes(self, rank: int) -> list[str]:
        path = self.folder / f"rank_{rank}.txt"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        """Return the ranks' processes, once all are there."""
        self.wait_for(lambda: self.notes(0) and self.notes(1))
        return [int(self.notes(rank)[0].split()[1]) for rank in (0, 1)]

    def wait_for(self, condition: Callable[[], object], seconds: float = 40.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.process.poll()
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=600)
        return self.process.returncode, out, err


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
