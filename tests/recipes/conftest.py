"""A tiny model, tokenizer and data set for recipes that really train."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes.preference_runs import NUM_PAIRS
from tune.checkpoints import save_model
from tune.models.llama2 import llama2
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.tokenizers import SentencePieceTokenizer

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


@pytest.fixture(scope="session")
def run_values_in(data_file: Path, spm_file: Path) -> Callable[[Path], dict[str, Any]]:
    """Return the values of a config for a run in a folder that takes a second: 4 steps of 2 x 3 sequences, twice."""
    return lambda output_dir: {
        "output_dir": str(output_dir),
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
def run_values(run_values_in: Callable[[Path], dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """The values of that run in a folder of the test's own."""
    return run_values_in(tmp_path / "out")


@pytest.fixture
def make_params(run_values: dict[str, Any]) -> MakeParams:
    """Return the params of that run with some of them changed."""

    def make(**changes: Any) -> FullFinetuneParams:
        return FullFinetuneParams(**{**run_values, **changes})

    return make


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> Path:
    torch.manual_seed(0)
    model = llama2(600, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    folder = tmp_path_factory.mktemp("base")
    save_model(model, folder, tokenizer=SentencePieceTokenizer(spm_file))
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(4)
    text = lambda most: " ".join(rng.choices(WORDS, k=rng.randint(1, most)))  # noqa: E731
    rows = [{"prompt": text(5), "chosen": text(3), "rejected": text(6)} for _ in range(NUM_PAIRS)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
