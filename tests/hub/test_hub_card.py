"""The model card says what a run knows, in valid YAML, and nothing about the machine it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tune.hub.card import write_card
from tune.hub.lineage import Base, Lineage, read_lineage

CONFIG: dict[str, Any] = {
    "recipe": "full_finetune",
    "checkpointer": {"_component_": "tune.training.FullModelCheckpointer", "checkpoint_dir": "/home/me/base"},
    "dataset": {"_component_": "tune.datasets.instruct_dataset", "source": "/home/me/data/my.jsonl"},
    "batch_size": 3,
    "gradient_accumulation_steps": 5,
    "epochs": 2,
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.002, "weight_decay": 0.1},
    "lr_scheduler": None,
    "dtype": "bf16",
    "seed": 7,
    "output_dir": "/home/me/out",
}


def write_run(folder: Path, config: dict[str, Any], *records: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "l'
    )
    return folder


def card_of(
    folder: Path, step: int = 4, kind: str = "model", base: str | None = None
) -> tuple[ModelCard, str]:
    text = write_card(read_lineage(folder, step, base), kind, "ann/parrot")
    return ModelCard(text), text


def origin(folder: Path, repo: str, readme: str = "") -> Path:
    (folder / ".tune_download").mkdir(parents=True)
    (folder / ".tune_download" / "origin.json").write_text(
        json.dumps({"repo": repo, "commit": "c", "files": {}})
    )
    (folder / "config.json").write_text("{}")
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


def test_it_says_what_the_run_knows(tmp_path: Path) -> None:
    run = write_run(
        tmp_path,
        CONFIG,
        {"step": 2, "loss": 3.0, "val_loss": 2.25},
        {"step": 4, "loss": 1.5, "num_tokens": 123456},
        {"step": 6, "loss": 0.5},
    )
    card, text = card_of(run)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["tune", "full-finetune"]
    assert card.data.base_model is None
    for words in (
        "# parrot", "recipe `full_finetune`", "saved after step 4", "`base (a local folder)`",
        "`my.jsonl` (a local file)", "| `batch_size` | `3` |",
        "| `gradient_accumulation_steps` | `5` |", "AdamW(lr=0.002, weight_decay=0.1)", "| `dtype` | `bf16` |",
        "| `seed` | `7` |", "| `loss` | `1.5` |", "| `val_loss` | `2.25` |",
        "| `num_tokens` | `123,456` |", 'from_pretrained("ann/parrot")', "tune download ann/parrot",
    ):  # fmt: skip
        assert words in text
    assert "0.5" not in text, "a later step is none of its business"
    assert "lr_scheduler" not in text


def test_no_place_on_this_machine_is_named(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "dataset": [
            {"source": "~/secret/a.jsonl"},
            {"source": "json", "data_files": ["/srv/x/b.json"]},
            {"source": "C:\\Users\\me\\c.csv"},
            {"source": "data/d.parquet"},
        ],
        "optimizer": {"_component_": "torch.optim.AdamW", "state_path": "/home/me/opt"},
    }
    _, text = card_of(write_run(tmp_path, config, {"step": 4}))
    for place in ("/home", "me/", "secret", "/srv", "Users", str(tmp_path), "out/"):
        assert place not in text
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        assert f"`{name}` (a local file)" in text


def test_data_on_the_hub_is_linked(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "dataset": [{"source": "tatsu-lab/alpaca"}, {"source": "org/two"}, "tune.datasets.alpaca"],
    }
    card, text = card_of(write_run(tmp_path, config))
    assert card.data.datasets == ["tatsu-lab/alpaca", "org/two"]
    assert "https://huggingface.co/datasets/tatsu-lab/alpaca" in text
    assert "- Data: `alpaca`" in text


def test_a_downloaded_base_is_named_with_its_license(tmp_path: Path) -> None:
    readme = "---\nlicense: llama3.2\nlicense_name: x\nlanguage: [en]\n---\n# hi\n"
    base = origin(tmp_path / "base", "meta-llama/Llama-3.2-1B", readme)
    config = {**CONFIG, "checkpointer": {"checkpoint_dir": str(base)}}
    card, text = card_of(write_run(tmp_path / "run", config))
    assert card.data.base_model == "meta-llama/Llama-3.2-1B"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert (card.data.license, card.data.license_name) == ("llama3.2", "x")
    assert "[meta-llama/Llama-3.2-1B](https://huggingface.co/meta-llama/Llama-3.2-1B)" in text
    adapter, text = card_of(tmp_path / "run", kind="adapter")
    assert adapter.data.library_name == "peft"
    assert adapter.data.to_dict()["base_model_relation"] == "adapter"
    assert 'from_pretrained("meta-llama/Llama-3.2-1B"), "ann/parrot")' in text


def test_metas_folder_belongs_to_its_download(tmp_path: Path) -> None:
    base = origin(tmp_path / "base", "meta-llama/Meta-Llama-3-8B")
    (base / "original").mkdir()
    (base / "original" / "params.json").write_text("{}")
    config = {**CONFIG, "checkpointer": {"checkpoint_dir": str(base / "original")}}
    assert card_of(write_run(tmp_path / "run", config))[0].data.base_model == "meta-llama/Meta-Llama-3-8B"


def test_a_run_that_went_on_from_a_run(tmp_path: Path) -> None:
    base = origin(tmp_path / "base", "owner/first")
    first = write_run(tmp_path / "first", {**CONFIG, "checkpointer": {"checkpoint_dir": str(base)}})
    (first / "step_000003" / "model").mkdir(parents=True)
    (first / "step_000003" / "model" / "config.json").write_text("{}")
    (first / "latest").symlink_to("step_000003")
    second = write_run(tmp_path / "second", {**CONFIG, "checkpointer": {"checkpoint_dir": str(first)}})
    assert card_of(second)[0].data.base_model == "owner/first"


def test_runs_that_lead_in_circles(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {**CONFIG, "checkpointer": {"checkpoint_dir": str(tmp_path / "run")}})
    (run / "step_000003" / "model").mkdir(parents=True)
    (run / "step_000003" / "model" / "config.json").write_text("{}")
    assert "(a local folder)" in card_of(run)[1]


@pytest.mark.parametrize(
    ("noted", "expected"),
    [("owner/name", "owner/name"), ("/home/me/x", None), ("checkpoints/x", None), (3, None)],
)
def test_what_config_json_notes(tmp_path: Path, noted: object, expected: str | None) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"_name_or_path": noted}))
    config = {**CONFIG, "checkpointer": {"checkpoint_dir": str(base)}}
    assert card_of(write_run(tmp_path / "run", config))[0].data.base_model == expected


def test_a_person_knows_better(tmp_path: Path) -> None:
    assert card_of(write_run(tmp_path, CONFIG), base="owner/stated")[0].data.base_model == "owner/stated"


def test_from_random_weights(tmp_path: Path) -> None:
    _, text = card_of(write_run(tmp_path, {**CONFIG, "train_from_scratch": True}))
    assert "none, trained from random weights" in text


@pytest.mark.parametrize(
    "content", ["", "[]", "a: [", "\0", "3", "checkpointer: 3\ndataset: [1, null]\nrecipe: []"]
)
def test_a_config_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    card, text = card_of(tmp_path)
    assert card.data.library_name == "transformers"
    assert "Base model: not known" in text


def test_a_model_of_no_run() -> None:
    card = ModelCard(write_card(read_lineage(None, None, None), "model", "a/b"))
    assert card.data.tags == ["tune"]


def test_nothing_in_a_config_acts_as_markup(tmp_path: Path) -> None:
    evil = "x`|\n\n---\nlicense: mit\n---\n<script>[a](http://e)"
    config = {**CONFIG, "recipe": evil, "dtype": evil, "dataset": {"source": evil + ".json"}}
    lineage = Lineage(4, config, {"loss": 1.0, "val_" + evil: 2.0}, Base(evil))
    text = write_card(lineage, "model", "a/b")
    assert ModelCard(text).data.license is None
    body = text.split("---\n", 2)[2]
    assert "\n---" not in body
    for line in body.splitlines():
        assert "<script>" not in line or line.count("`") % 2 == 0
