"""A tiny model, tokenizer and data set for recipes that really train."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.params.full_finetune import FullFinetuneParams

WORDS = ["apple", "river", "seven", "twelve", "green", "walk"]
TINY_LLAMA = {
    "_component_": "tune.models.llama2.llama2",
    "vocab_size": 600,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 24,
    "intermediate_dim": 40,
    "max_seq_len": 64,
}
MakeParams = Callable[..., FullFinetuneParams]


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 questions and answers of unequal length, as JSON lines."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = []
    for _ in range(23):
        question = rng.choices(WORDS, k=rng.randint(2, 6))
        rows.append({"question": " ".join(question), "answer": " ".join(question[: rng.randint(1, 4)])})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_values(data_file: Path, spm_file: Path, tmp_path: Path) -> dict[str, Any]:
    """The values of a config for a run that takes a second: 5 steps of 2 x 3 sequences, then 5 more."""
    return {
        "output_dir": str(tmp_path / "out"),
        "model": TINY_LLAMA,
        "train_from_scratch": True,
        "tokenizer": {"_component_": "tune.models.llama2.llama2_tokenizer", "path": str(spm_file)},
        "dataset": {"_component_": "tune.datasets.instruct_dataset", "source": str(data_file)},
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "epochs": 2,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01},
        "dtype": "fp32",
        "device": "cpu",
        "seed": 3,
        "log_level": "WARNING",
    }


@pytest.fixture
def make_params(run_values: dict[str, Any]) -> MakeParams:
    """Return the params of that run with some of them changed."""

    def make(**changes: Any) -> FullFinetuneParams:
        return FullFinetuneParams(**{**run_values, **changes})

    return make
