"""Trainers of Hugging Face train a model of tune, by the scripts in docs; what they save has learnt, and loads."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests import warm_python
from tune import models
from tune.data import padded_collate_sft, shift_labels
from tune.datasets import instruct_dataset
from tune.tokenizers import from_checkpoint
from tune.utils.paths import get_recipes_dir

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("script", ["hf_trainer.py", "hf_accelerate.py"])
def test_their_trainers_take_our_model(script: str, tmp_path: Path) -> None:
    rows = [{"question": f"Say {n % 3}.", "answer": "moo"} for n in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = get_recipes_dir() / "bundled" / "tiny_llama"
    command = [sys.executable, str(ROOT / "docs" / script), str(model), "rows.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = warm_python.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows_of = instruct_dataset(from_checkpoint(model), source=str(tmp_path / "rows.jsonl"))
    batch = padded_collate_sft([rows_of[0], rows_of[1]])
    before, after = (mean_loss(folder, batch) for folder in (model, tmp_path / "hf_model"))
    assert after < before / 4


def mean_loss(folder: Path, batch: dict[str, Tensor]) -> float:
    logits = models.from_checkpoint(folder)(batch["tokens"])
    return float(cross_entropy(logits.flatten(0, 1), shift_labels(batch["labels"]).flatten()))
