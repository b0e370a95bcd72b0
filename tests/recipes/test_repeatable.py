"""The same command twice, in two real processes that were started in two ways: the same weights, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]


def start(popen: Callable[..., subprocess.Popen[str]], data: Path, output_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tune", "run", "full_finetune", "--config", "tiny/full_finetune"]
    # The bundled data would be tokenized for longer than all else takes.
    overrides = [f"dataset.source={data}", "batch_size=8", "epochs=1", "seed=1", f"output_dir={output_dir}"]
    return popen(
        [*command, *overrides, "log_every_n_steps=1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=output_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    """That another seed gives others is shown where runs are in one process."""
    data = tmp_path / "orders.jsonl"
    words = ["mill", "basket", "goose", "crab", "forest"]
    rows = [
        {"instruction": "Say it.", "input": " ".join(words[: 1 + i % 5]), "output": words[i % 4]}
        for i in range(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = {"one": subprocess.Popen, "again": warm_python.Popen}
    runs = {name: start(popen, data, tmp_path / name) for name, popen in starts.items()}
    for run in runs.values():
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    weights = {name: (tmp_path / name / "latest/model/model.safetensors").read_bytes() for name in runs}
    assert weights["one"] == weights["again"]
    metrics = {
        name: [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in runs
    }
    assert [row["step"] for row in metrics["one"]] == [1, 2, 3, 4, 5]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in metrics["one"]] == [row[key] for row in metrics["again"]]
