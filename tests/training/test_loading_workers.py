"""Loader workers: no batch changes, signals to all processes leave them at work, and they end with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tune.errors import ConfigError
from tune.training.data_workers import WorkerLoader

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, time
from tune.config.component import Component
from tune.training import build_loader
from tune.utils.mesh import Mesh

class Examples:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        time.sleep(0.02)
        return {"tokens": [index, 1, 2], "labels": [-100, 1, 2]}

def load(num_workers):
    return build_loader(Examples(), Component("tune.data.padded_collate_sft"), batch_size=2, padding_idx=0,
                        shuffle=True, seed=3, mesh=Mesh(), num_workers=num_workers)

def read(num_workers, group):
    batches = iter(load(num_workers))
    rows = [next(batches)["tokens"][:, 0].tolist()]
    if group:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        print("ready", flush=True)
        time.sleep(1.0)
    return rows + [batch["tokens"][:, 0].tolist() for batch in batches], batches

def main():
    alone, _ = read(0, False)
    # Kept to the end of the program, with its workers: a loop that was left early does just that.
    many, kept = read(2, True)
    assert many == alone, (many, alone)
    kept = iter(load(2))
    next(kept)
    print("done", flush=True)

if __name__ == "__main__":
    main()
"""


def test_signals_to_all_processes_leave_the_workers_at_work(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.killpg(process.pid, signum)
        time.sleep(0.05)
    out, err = process.communicate(timeout=200)  # and the program comes to its end
    assert (process.returncode, out) == (0, "done\n"), err


EXAMPLES = """
class Examples:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return {"tokens": [index, 1, 2], "labels": [-100, 1, 2]}
"""
# As recipes of one's own are at times: no `if __name__ == "__main__"`, so that who imports it runs it again.
UNGUARDED = """
import multiprocessing, os, signal, sys
from examples import Examples
from tune.config.component import Component
from tune.errors import TrainingError
from tune.training import build_loader
from tune.utils.mesh import Mesh

print("begun", flush=True)
def load():
    return build_loader(Examples(), Component("tune.data.padded_collate_sft"), batch_size=2, padding_idx=0,
                        shuffle=True, seed=3, mesh=Mesh(), num_workers=1)

loader = load()
epochs = [[batch["tokens"].tolist() for batch in loader] for _ in range(2)]
assert epochs[0] == epochs[1]
workers = [process.pid for process in multiprocessing.active_children()]
print(*workers, flush=True)  # one, although there were two epochs
batches = iter(loader)
os.kill(workers[0], signal.SIGKILL)
try:
    list(batches)
except TrainingError as error:
    print(error, flush=True)
loader = load()
next(iter(loader))
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_is_named_and_none_outlives_its_run(tmp_path: Path) -> None:
    (tmp_path / "examples.py").write_text(EXAMPLES)
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    # A file of a module's name, as it may come with data: nobody imports it.
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "signal.py").write_text("raise SystemExit('the wrong signal.py')")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "unguarded.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    begun, killed, said, left = done.stdout.splitlines()
    assert begun == "begun"
    assert said.startswith(
        f"data worker 1 of 1 (process {killed}) was killed by SIGKILL: often the kernel's out-of-memory killer"
    )
    until = time.monotonic() + 600
    while Path(f"/proc/{left}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_cannot_be_handed_to_a_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the dataset cannot be handed .* or set num_workers=0"):
        WorkerLoader([lambda: 0], len, 1)
