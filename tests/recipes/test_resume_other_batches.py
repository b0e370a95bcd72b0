"""Gone on with steps of another size: each example once, the steps counted anew, the last one saved."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.components import with_arguments
from tune.errors import CheckpointError, DataError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.recipes.lora_finetune import LoraFinetuneRecipe
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams
from tune.training import TrainState, list_saved_steps

NUM_ROWS = 23  # of the data that run_values names
SCHEDULED = {
    "gradient_accumulation_steps": 1,
    "lr_scheduler": {"_component_": "linear", "num_warmup_steps": 0},
}


def run(recipe: Any) -> list[tuple[int, ...]]:
    """Train; return the examples in the order in which they were trained on."""
    seen = []
    batch_loss = recipe.batch_loss

    def watch(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist(), strict=True):
            last = max(index for index, label in enumerate(labels) if label != -100)
            seen.append(tuple(tokens[: last + 1]))
        return batch_loss(batch)

    recipe.batch_loss = watch
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.cleanup()
    return seen


@pytest.fixture(scope="module")
def make_recipe(run_values_in, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a recipe, full or lora, that trains in a folder."""
    base = tmp_path_factory.mktemp("base")
    recipe_main(FullFinetuneParams(**{**run_values_in(base), "epochs": 1, "max_steps_per_epoch": 1}))

    def make(kind: str, output_dir: Path, **changes: Any) -> Any:
        values = {**run_values_in(output_dir), **SCHEDULED, "save_every_n_steps": 1, **changes}
        if kind == "full":
            return FullFinetuneRecipe(FullFinetuneParams(**values))
        for name in ("model", "train_from_scratch"):
            del values[name]
        return LoraFinetuneRecipe(
            LoraFinetuneParams(**{"model_checkpoint": str(base), "lora_rank": 2, **values})
        )

    return make


@pytest.fixture(scope="module")
def first_run(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Any]:
    """Return where a whole run of a kind and batch size is, and the examples in its order; it is made once."""

    @cache
    def train(kind: str, batch_size: int) -> tuple[Path, list[tuple[int, ...]]]:
        out = tmp_path_factory.mktemp("first") / "out"
        return out, run(make_recipe(kind, out, batch_size=batch_size))

    return train


def forget_after(output_dir: Path, step: int) -> None:
    for saved in list_saved_steps(output_dir):
        if saved.step > step:
            shutil.rmtree(saved.path)


@pytest.mark.parametrize(
    ("kind", "first", "kept", "then", "num_steps"),
    [
        # At the epoch's end: 3 steps of 8, then 6 of 4, or 2 of 16.
        ("full", 8, 3, {"batch_size": 4}, 3 + 6),
        ("full", 8, 3, {"batch_size": 16}, 3 + 2),
        # In its middle, after 8 of 23.
        ("full", 8, 1, {"batch_size": 4}, 1 + 4 + 6),
        ("full", 8, 1, {"batch_size": 16}, 1 + 1 + 2),
        ("full", 2, 4, {"batch_size": 5}, 4 + 3 + 5),
        ("full", 2, 4, {"batch_size": 2, "gradient_accumulation_steps": 4}, 4 + 2 + 3),
        # The same number of sequences: the same steps.
        ("full", 8, 1, {"batch_size": 2, "gradient_accumulation_steps": 4}, 6),
        # The other recipe's loop is the same text.
        ("lora", 8, 1, {"batch_size": 4}, 1 + 4 + 6),
        ("lora", 8, 3, {"batch_size": 4, "gradient_accumulation_steps": 4}, 3 + 2),
    ],
)
def test_each_example_is_seen_once(
    make_recipe, first_run, tmp_path, kind, first, kept, then, num_steps
) -> None:
    out, before = first_run(kind, first)
    shutil.copytree(out, tmp_path / "out", symlinks=True)
    seen = before[: min(kept * first, NUM_ROWS)]
    forget_after(tmp_path / "out", kept)
    changes = {**then, "save_every_n_steps": None, "save_every_epoch": False}
    changes |= {"resume_from_checkpoint": True, "allow_changes_on_resume": True}
    resumed = make_recipe(kind, tmp_path / "out", **changes)
    seen += run(resumed)
    # The rest of the same order, then another one.
    assert seen[:NUM_ROWS] == before[:NUM_ROWS]
    assert Counter(seen[NUM_ROWS:]) == Counter(seen[:NUM_ROWS])
    assert resumed.state.step == resumed.state.num_steps == num_steps
    assert list_saved_steps(tmp_path / "out")[-1].step == num_steps
    rates = [json.loads(line)["lr"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) == num_steps
    assert rates[-1] == pytest.approx(0.01 / num_steps)  # the schedule's end is the run's


@pytest.mark.parametrize(("limit", "num_steps"), [(2, 3 + 2), (3, 3 + 3), (4, 4 + 4), (None, 6 + 6)], ids=str)
def test_another_limit_on_an_epochs_steps(make_params, tmp_path, limit: int | None, num_steps: int) -> None:
    small = {"batch_size": 4, "gradient_accumulation_steps": 1}
    recipe_main(make_params(**small, epochs=1, max_steps_per_epoch=3))
    resumed = FullFinetuneRecipe(
        make_params(
            **small,
            max_steps_per_epoch=limit,
            save_every_epoch=False,
            resume_from_checkpoint=True,
            allow_changes_on_resume=True,
        )
    )
    run(resumed)
    assert resumed.state.step == resumed.state.num_steps == num_steps
    assert list_saved_steps(tmp_path / "out")[-1].step == num_steps


def test_a_step_without_its_samplers_place(make_params) -> None:
    """What a recipe has not tracked follows from the step, and the sequences that one took."""
    counters = {"step": 2, "epoch": 0, "step_in_epoch": 2, "fingerprint": {"sequences_per_step": "8"}}
    recipe = FullFinetuneRecipe(make_params(batch_size=2, gradient_accumulation_steps=1))
    recipe.setup()
    try:
        state = TrainState(3, resumed=counters)
        state.plan_steps(recipe.loader, epochs=2)
    finally:
        recipe.cleanup()
    assert state.last_step_in_epoch == 2 + 4  # 7 of 23 are left
    assert state.num_steps == 2 + 4 + 12


def other_data(params: Any, tmp_path: Path, num_rows: int) -> dict[str, Any]:
    source = tmp_path / f"{num_rows}.jsonl"
    rows = [{"question": f"seven {row}", "answer": "twelve"} for row in range(num_rows)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return with_arguments(params.dataset, source=str(source))


def test_other_data_may_follow_a_whole_epoch(make_params, tmp_path: Path) -> None:
    recipe_main(make_params(epochs=1))
    changed = {"dataset": other_data(make_params(), tmp_path, 31), "resume_from_checkpoint": True}
    with pytest.raises(CheckpointError, match=r"dataset: was 23 examples, .*, is 31 examples"):
        run(FullFinetuneRecipe(make_params(**changed)))
    resumed = FullFinetuneRecipe(make_params(**changed, seed=4, allow_changes_on_resume=True))
    assert len(set(run(resumed))) == 31
    assert resumed.state.step == resumed.state.num_steps == 4 + 6


def test_other_data_in_mid_epoch_is_refused(make_params, tmp_path: Path) -> None:
    recipe_main(make_params(save_every_n_steps=3))
    forget_after(tmp_path / "out", 3)
    changed = {"dataset": other_data(make_params(), tmp_path, 31), "resume_from_checkpoint": True}
    with pytest.raises(CheckpointError, match=r"dataset: was 23 examples, .*, is 31 examples"):
        run(FullFinetuneRecipe(make_params(**changed)))
    with pytest.raises(DataError, match=r"num_examples was 23 .* 31 now"):
        run(FullFinetuneRecipe(make_params(**changed, allow_changes_on_resume=True)))
