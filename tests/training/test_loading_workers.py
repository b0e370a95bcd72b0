"""Loader workers: no batch changes, signals to all processes leave them at work, and they end with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, time
from tune.config.component import Component
from tune.training import Mesh, build_loader

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
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, lambda *_: None)
        print("ready", flush=True)
        time.sleep(1.0)
    return rows + [batch["tokens"][:, 0].tolist() for batch in batches], batches

alone, _ = read(0, False)
# Kept to the end of the program, with its workers: a loop that was left early does just that.
many, kept = read(2, True)
assert many == alone, (many, alone)
kept = iter(load(2))
next(kept)
print("done", flush=True)
"""


def test_signals_to_all_processes_leave_the_workers_at_work() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.killpg(process.pid, signum)
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)  # and the program comes to its end
    assert (process.returncode, out) == (0, "done\n"), err
