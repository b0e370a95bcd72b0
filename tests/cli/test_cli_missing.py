"""`tune run` says what is not there before it starts anything; `tune validate` says that it has not looked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = ("full_finetune", "--config", "tiny/full_finetune", "output_dir=out")


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("dataset.source=nope.jsonl", 1, "dataset.source: there is no file or folder nope.jsonl"),
        ("dataset.source=/nowhere/folder", 1, "no file or folder /nowhere/folder (nor a folder /nowhere)"),
        (
            "dataset={_component_: instruct, source: json, data_files: [no.json]}",
            1,
            "there is no file no.json",
        ),
        (
            "dataset={_component_: instruct, source: here, data_files: no.json}",
            1,
            "there is no file here/no.json",
        ),
        ("dataset_val={_component_: instruct, source: datta.jsonl}", 1, "; did you mean data.jsonl?"),
        ("model_checkpoint=nope", 1, "nope does not exist"),
        ("model_checkpoint=data.jsonl", 1, "data.jsonl is a file; give the folder"),
        ("model_checkpoint=empty", 1, "empty is an empty folder"),
        ("model_checkpoint=gone", 1, "gone is a link to nowhere, which is gone"),
        ("tokenizer={_component_: llama2_tokenizer, path: no.model}", 1, "no.model does not exist"),
        ("dataset.prompt_template=no.jinja", 1, "no.jinja does not exist"),
        ("output_dir=data.jsonl", 1, "data.jsonl is a file"),
        ("output_dir=data.jsonl/x", 1, "data.jsonl is a file"),
        ("metric_logger=wandb", 2, "wandb: not installed: pip install wandb"),
        ("optimizer=bitsandbytes.optim.AdamW8bit", 2, "bitsandbytes: not installed"),
    ],
)
def test_a_run_looks_first(tune, tmp_path: Path, override: str, code: int, words: str) -> None:
    (tmp_path / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    outcome = tune("run", *TINY, override)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert sorted(tmp_path.rglob("*")) == before
    if "output_dir" not in override:
        found = tune("validate", "tiny/full_finetune", override)
        assert found.code == 0
        assert "--preflight" in found.err


def test_everything_missing_is_named_at_once_without_torch(tmp_path: Path) -> None:
    words = ["tune", "run", *TINY, "dataset.source=no.jsonl", "model_checkpoint=nope", "metric_logger=wandb"]
    code = (
        "import sys; from tune.cli.main import main\n"
        f"code = main({words[1:]!r})\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    for what in (
        "model_checkpoint: nope",
        "dataset.source: there is no file or folder no.jsonl",
        "wandb: not installed",
    ):
        assert what in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_says_nothing_else(tune) -> None:
    outcome = tune("validate", "tiny/full_finetune", "--json")
    assert outcome.err == ""
    assert json.loads(outcome.out) == {"version": 1, "ok": True, "errors": [], "warnings": []}


def test_generation_looks_for_its_prompts(tune) -> None:
    words = ("run", "generate", "model_checkpoint=bundled:tiny_llama")
    outcome = tune(*words, "prompt_file=no.txt")
    assert outcome.code == 1
    assert "no.txt does not exist" in outcome.err
