"""The parts of the library do their work without a recipe."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from tune.checkpoints import save_model
from tune.generation import generate_text
from tune.models import from_checkpoint
from tune.models.llama2 import llama2
from tune.tokenizers import SentencePieceTokenizer
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "hero.py"


def test_the_script_is_ten_lines_and_needs_no_recipe() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    statements = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(statements) - 1 <= 10  # the docstring is one
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.startswith(("recipes", "tune.training", "tune.cli"))]


def test_the_script_teaches_a_model_something(tmp_path: Path, spm_file: Path) -> None:
    colours = ["red", "blue", "green", "black"]
    rows = [
        {"prompt": f"{colour} ->", "completion": f" {colours[i - 1]}"} for i, colour in enumerate(colours)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 240))
    tokenizer = SentencePieceTokenizer(spm_file)
    torch.manual_seed(0)
    model = llama2(
        vocab_size=tokenizer.vocab_size,
        num_layers=2,
        num_heads=4,
        embed_dim=64,
        max_seq_len=48,
        intermediate_dim=96,
    )
    save_model(model, tmp_path / "model", tokenizer=tokenizer)

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "model", "data.jsonl"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 120
    assert losses[-1] < 0.3 < 3 < losses[0]
    trained, its_tokenizer = (
        from_checkpoint(tmp_path / "hero_model"),
        tokenizer_from_checkpoint(tmp_path / "hero_model"),
    )
    for row in rows:
        answer = generate_text(trained, its_tokenizer, row["prompt"], max_new_tokens=8)
        assert answer.strip() == row["completion"].strip()
