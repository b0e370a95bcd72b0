"""A recipe of one's own, as docs/own_recipe.md makes it: a short diff, which runs, resumes, and has all the tools."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed.launching import ROOT, launch
from tune import models
from tune.checkpoints.manifest import write_manifest
from tune.errors import CheckpointError

DOC = (ROOT / "docs" / "own_recipe.md").read_text(encoding="utf-8")


def changed_recipe() -> str:
    """Return full_finetune.py with the diff of the docs applied."""
    diff = re.search(r"```diff\n(.*?)```", DOC, re.DOTALL)
    assert diff is not None
    lines = diff[1].splitlines()
    assert len(lines) <= 60, "own recipes are to cost few lines"
    old = (ROOT / "recipes" / "full_finetune.py").read_text(encoding="utf-8").splitlines()
    new: list[str] = []
    place = 0
    for line in lines[2:]:
        if hunk := re.match(r"@@ -(\d+)(?:,(\d+))? ", line):
            # An insertion stands after its line, a change at its line.
            until = int(hunk[1]) - (hunk[2] != "0")
            new += old[place:until]
            place = until
        elif line.startswith("-"):
            assert old[place] == line[1:], f"the docs change line {place + 1}, which reads otherwise"
            place += 1
        else:
            new.append(line[1:])
    return "\n".join([*new, *old[place:]]) + "\n"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(changed_recipe(), encoding="utf-8")
    return path


@pytest.fixture
def module(mine: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mine", mine)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine", loaded)  # as an import would; dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def run(module: ModuleType, run_values: dict[str, Any]) -> Callable[..., None]:
    """Run the recipe with some values changed."""
    values = {
        **run_values,
        "ema_decay": 0.8,
        "save_every_n_steps": 2,
    }

    def call(**changes: Any) -> None:
        assert module.recipe_main(module.MyParams(**{**values, **changes})) == 0

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_each_change_takes_effect(module, run_values, tmp_path: Path) -> None:
    params = module.MyParams(**{**run_values, "ema_decay": 0.8, "save_every_n_steps": 1, "epochs": 1})
    recipe = module.FullFinetuneRecipe(params)
    recipe.setup()
    expected = {name: weight.detach().clone() for name, weight in recipe.model.named_parameters()}
    start = dict(expected)
    recipe.train()
    recipe.export_average()
    recipe.cleanup()
    for step in sorted((tmp_path / "out").glob("step_*")):
        saved = models.from_checkpoint(step / "model").state_dict()
        expected = {name: torch.lerp(weight, saved[name], 0.2) for name, weight in expected.items()}
    average = models.from_checkpoint(tmp_path / "out" / "average_4" / "model").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(average[name], weight)
        assert torch.equal(average[name], start[name]) == name.startswith("layers.0."), name
    # The second half of the ten steps, or here of five, is taken at a tenth of the rate.
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["lr"] for row in rows] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_answers_weigh_the_same(module, run_values, tmp_path: Path) -> None:
    recipe = module.FullFinetuneRecipe(module.MyParams(**run_values))
    recipe.setup()
    batch = next(iter(recipe.loader))
    total, num_answers = recipe.batch_loss(batch)
    recipe.cleanup()
    losses = []
    for tokens, labels in zip(batch["tokens"], batch["labels"], strict=True):
        logits = recipe.model(tokens[None])[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels[1:]))
    assert num_answers == len(losses) == 3
    torch.testing.assert_close(total, torch.stack(losses).sum())


def test_it_resumes_bit_for_bit(run, tmp_path: Path) -> None:
    run()
    out, again = tmp_path / "out", tmp_path / "again"
    shutil.copytree(out, again, symlinks=True)
    for step in [*sorted(again.glob("step_*"))[2:], *again.glob("average_*")]:
        shutil.rmtree(step)
    run(output_dir=str(again), resume_from_checkpoint=True)
    for folder in ("step_000008", "average_8"):
        assert (out / folder / "model" / "model.safetensors").read_bytes() == (
            again / folder / "model" / "model.safetensors"
        ).read_bytes()
    with pytest.raises(CheckpointError, match=r"ema_decay: was 0\.8, is 0\.5"):
        run(output_dir=str(again), resume_from_checkpoint=True, ema_decay=0.5, epochs=3)


def test_exported_averages_are_not_trained_on(run, tmp_path: Path, module, monkeypatch) -> None:
    """Averages in place of the trained weights: noticed when the run is resumed, and refused."""

    def write_average(self: Any, model: torch.nn.Module, directory: Path) -> None:
        with torch.no_grad():
            kept = {name: weight.clone() for name, weight in model.named_parameters()}
            for name, weight in model.named_parameters():
                weight.copy_(self.average[name])
            self.checkpointer.save_model(model, directory, self.tokenizer)
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])

    with monkeypatch.context() as patched:
        patched.setattr(module.FullFinetuneRecipe, "_write_model", write_average)
        run(epochs=1)
    with pytest.raises(CheckpointError, match=r"holds other weights than were trained: \d+ of \d+ differ"):
        run(epochs=2, resume_from_checkpoint=True)
    run(epochs=2, resume_from_checkpoint=True, allow_changes_on_resume=True)


def test_two_processes_train_as_one(mine: Path, run, run_values, tmp_path: Path) -> None:
    sgd = {"_component_": "torch.optim.SGD", "lr": 0.05}  # its weights differ where gradients do
    run(batch_size=4, optimizer=sgd, output_dir=str(tmp_path / "one"))
    config = tmp_path / "mine.yaml"
    values = {
        **run_values,
        "batch_size": 2,
        "optimizer": sgd,
        "output_dir": str(tmp_path / "two"),
        "ema_decay": 0.8,
    }
    config.write_text(json.dumps(values))
    done = launch(2, mine, "--config", str(config))
    assert done.returncode == 0, done.stderr
    for name in ("latest", "average_6"):
        one, two = weights(tmp_path / "one" / name), weights(tmp_path / "two" / name)
        for name, expected in one.items():
            torch.testing.assert_close(two[name], expected, atol=2e-5, rtol=2e-4)


def test_a_changed_export_is_seen_in_one_bit(run, tmp_path: Path) -> None:
    """The smallest change of one weight in the saved step's model, with a manifest made anew."""
    run(epochs=1)
    last = max((tmp_path / "out").glob("step_*"))
    file = last / "model" / "model.safetensors"
    tensors = load_file(file)
    changed = tensors["model.norm.weight"]
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    save_file(tensors, file, metadata={"format": "pt"})
    (last / "manifest.json").unlink()
    write_manifest(last, int(last.name[-6:]))
    with pytest.raises(CheckpointError, match=r"1 of \d+ differ, the first is norm\.scale"):
        run(epochs=2, resume_from_checkpoint=True)
