"""From the folder that a person names to what can be asked: a run, a step, a model, an adapter and its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune.checkpoints.run_folder import Trained, find_run, locate_trained
from tune.errors import CheckpointError

ADAPTER = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with one saved step, in which nothing is yet."""
    folder = tmp_path / "out"
    (folder / "step_000004").mkdir(parents=True)
    (folder / "latest").symlink_to("step_000004")
    (folder / "run.json").write_text('{"tune_run": 1}')
    return folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def make_adapter(folder: Path, base: Path | str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | {"base_model_name_or_path": str(base)}))
    return folder


def test_a_model_of_a_run(run: Path) -> None:
    model = make_model(run / "step_000004" / "model")
    for place in (run, run / "latest", run / "step_000004"):
        assert locate_trained(str(place)) == Trained(str(place), None, run)
    for place in (model, run / "latest" / "model"):
        assert locate_trained(str(place)) == Trained(str(place), None, run, is_files=True)


def test_an_adapter_stands_for_itself_on_its_base(run: Path, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(run / "step_000004" / "adapter", base)
    for place in (run, run / "latest", run / "step_000004", adapter):
        found = locate_trained(str(place))
        assert (found.model, found.run) == (str(base), run)
        assert found.adapter is not None
        assert Path(found.adapter).samefile(adapter)
    make_model(run / "step_000004" / "model")  # where both were saved, the model has the adapter in it
    assert locate_trained(str(run)) == Trained(str(run), None, run)


def test_a_base_and_an_adapter_that_are_named(run: Path) -> None:
    assert locate_trained("base", str(run)) == Trained("base", str(run), run)


def test_a_base_that_is_not_there(run: Path, tmp_path: Path) -> None:
    make_adapter(run / "step_000004" / "adapter", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="model_checkpoint=BASE adapter_checkpoint="):
        locate_trained(str(run))


def test_what_was_trained_elsewhere(tmp_path: Path) -> None:
    model = make_model(tmp_path / "a" / "b" / "model")
    assert locate_trained(str(model)) == Trained(str(model), None, None, is_files=True)
    assert find_run(tmp_path / "nowhere") is None
    # A run of an earlier version is known by its other files.
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "a" / name).write_text("")
    assert find_run(model) == tmp_path / "a"
