"""Files that go, or are cut short, while a run is at work: one clear error, and what was saved before is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune.errors import TuneError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.training import Checkpoints, SavedStep, list_saved_steps, verify_step

Damage = Callable[[Path], object]


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def after_the_choice(monkeypatch: pytest.MonkeyPatch, damage: Damage) -> None:
    """Have something happen to the saved step that a run has verified and chosen, before anything of it is loaded."""
    choose = Checkpoints._claim

    def choose_and_lose(self: Checkpoints, *args: Any) -> SavedStep | None:
        chosen = choose(self, *args)
        assert chosen is not None
        damage(chosen.path)
        return chosen

    monkeypatch.setattr(Checkpoints, "_claim", choose_and_lose)


def test_a_file_that_goes_between_the_check_and_the_load(make_params, tmp_path: Path, monkeypatch) -> None:
    recipe_main(make_params(epochs=1, save_every_n_steps=1))
    out, whole = tmp_path / "out", tmp_path / "whole"
    newest = list_saved_steps(out)[-1]
    shutil.copytree(newest.path, whole)
    files = [path.relative_to(newest.path) for path in newest.path.rglob("*") if path.is_file()]
    resumed = make_params(epochs=1, save_every_n_steps=1, resume_from_checkpoint=True)
    num_lost = 0
    for name in sorted(files):
        if name.name == "manifest.json":  # has been read
            continue
        for damage in (Path.unlink, halve, empty):
            with monkeypatch.context() as patched:
                after_the_choice(patched, lambda step, name=name, damage=damage: damage(step / name))
                with pytest.raises(TuneError) as caught:
                    recipe_main(resumed)
            said = str(caught.value)
            assert name.name in said or str(name.parent) in said, (name, damage, said)
            assert len(said) < 700
            assert not (out / ".tokenizer.new").exists()
            num_lost += 1
            shutil.rmtree(newest.path)
            shutil.copytree(whole, newest.path)
    assert (
        num_lost >= 3 * 6
    )  # weights, configuration, tokenizer; the optimizer's tensors, their index, and the rest

    after_the_choice(monkeypatch, shutil.rmtree)
    with pytest.raises(
        TuneError, match=r"run.pt: No such file or directory\. If the step was whole when it was"
    ):
        recipe_main(resumed)
    monkeypatch.undo()
    for saved in list_saved_steps(out):
        verify_step(saved)
    # Started again, it goes on from the step before.
    recipe_main(resumed)
    assert list_saved_steps(out)[-1] == newest
    verify_step(newest)


def test_an_output_directory_that_goes_while_training(
    make_params, tmp_path: Path, monkeypatch, capsys
) -> None:
    """What was there is lost, and said; what comes is saved."""
    save = FullFinetuneRecipe.save_checkpoint
    out = tmp_path / "out"

    def save_and_lose(self: FullFinetuneRecipe) -> None:
        save(self)
        if self.state.step == 2:
            shutil.rmtree(out)

    monkeypatch.setattr(FullFinetuneRecipe, "save_checkpoint", save_and_lose)
    recipe_main(make_params(epochs=1, save_every_n_steps=1, log_every_n_steps=1))
    assert "step_000002 was removed during the run" in capsys.readouterr().err
    kept = list_saved_steps(out)
    assert [saved.step for saved in kept] == [3, 4]
    for saved in kept:
        verify_step(saved)

    def save_nowhere(self: FullFinetuneRecipe) -> None:
        shutil.rmtree(out)
        out.write_text("somebody's file")
        save(self)

    monkeypatch.setattr(FullFinetuneRecipe, "save_checkpoint", save_nowhere)
    shutil.rmtree(out)
    with pytest.raises(TuneError, match=r"could not save step_000001 .*(Not a directory|File exists)"):
        recipe_main(make_params(epochs=1, save_every_n_steps=1))
    assert out.read_text() == "somebody's file"
