"""An output directory that is renamed, deleted or replaced while a run writes to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune.config.params import ParamsError
from tune.errors import CheckpointError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.training import list_saved_steps, verify_step


def run_with(params: Any, happens: Callable[[], None]) -> None:
    """Train; something happens to the directory in the third step."""
    recipe = FullFinetuneRecipe(params)
    train_step = recipe.train_step

    def watched(micro_batches: list[Any]) -> Any:
        if recipe.state.step == 3:
            happens()
        return train_step(micro_batches)

    recipe.train_step = watched  # type: ignore[method-assign]
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.cleanup()


@pytest.mark.parametrize("in_background", [False, True])
def test_renamed_the_step_is_saved_where_it_went(make_params, tmp_path: Path, in_background: bool) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    changes = {"save_every_n_steps": 1, "epochs": 1, "enable_async_checkpointing": in_background}
    with pytest.raises(CheckpointError, match=r"out was renamed to .*other during the run") as caught:
        run_with(make_params(**changes), lambda: os.rename(out, other))
    assert f"output_dir={other} resume_from_checkpoint=true" in str(caught.value)
    # In the background the one before may just be written, or just begin to be.
    assert in_background or [saved.step for saved in list_saved_steps(other)] == [1, 2, 3]
    left = list_saved_steps(out) if out.exists() else []
    assert [saved.step for saved in left] in ([[], [2]] if in_background else [[]])
    for saved in left:
        verify_step(saved)
    recipe_main(make_params(**{**changes, "output_dir": str(other)}, resume_from_checkpoint=True))
    assert list_saved_steps(other)[-1].step == 4


def test_deleted_it_is_held_anew(make_params, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_with(make_params(save_every_n_steps=1, epochs=1), lambda: shutil.rmtree(out))
    assert [saved.step for saved in list_saved_steps(out)] == [3, 4]
    verify_step(list_saved_steps(out)[-1])
    assert (out / ".lock").exists()
    assert (out / "config.yaml").exists()


def test_anothers_folder_of_that_name_is_left_alone(make_params, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def replace() -> None:
        shutil.rmtree(out)
        (out / "step_000009").mkdir(parents=True)

    with pytest.raises(CheckpointError, match="was deleted during the run, and another folder has its name"):
        run_with(make_params(save_every_n_steps=1, epochs=1), replace)
    assert [saved.step for saved in list_saved_steps(out)] == [9]


def test_the_best_step_must_be_one_that_is_saved(make_params) -> None:
    validated = {"dataset_val": make_params().dataset, "run_val_every_n_steps": 3}
    with pytest.raises(ParamsError, match="make one a multiple of the other"):
        make_params(**validated, save_every_n_steps=2)
    for num_steps in (1, 3, 6, None):
        make_params(**validated, save_every_n_steps=num_steps)
