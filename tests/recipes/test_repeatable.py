"""The same command twice, in two real processes: the same weights, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(output_dir: Path, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tune", "run", "full_finetune", "--config", "tiny/full_finetune"]
    overrides = ["max_steps_per_epoch=5", "epochs=1", f"seed={seed}", f"output_dir={output_dir}"]
    return subprocess.Popen(
        command + overrides,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=output_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    runs = {name: start(tmp_path / name, seed) for name, seed in (("one", 1), ("again", 1), ("other", 2))}
    for run in runs.values():
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    weights = {name: (tmp_path / name / "latest/model/model.safetensors").read_bytes() for name in runs}
    assert weights["one"] == weights["again"]
    assert weights["one"] != weights["other"]
    rows = {
        name: [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in runs
    }
    assert rows["one"][-1]["step"] == 5
    assert [row["loss"] for row in rows["one"]] == [row["loss"] for row in rows["again"]]
    assert [row["grad_norm"] for row in rows["one"]] == [row["grad_norm"] for row in rows["again"]]
