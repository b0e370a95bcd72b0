"""Answers scored as training goes on, the best step by them, and a run that ends once nothing gets better."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune.checkpoints.run_folder import read_run_record
from tune.cli.main import main
from tune.errors import ConfigError
from tune.recipes.evaluate import recipe_main as evaluate
from tune.recipes.full_finetune import recipe_main as train
from tune.recipes.params.evaluate import EvaluateParams
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.training import TrainState

RunValues = Callable[[Path], dict[str, Any]]
ASKS = {
    "val_split": 7,
    "eval_every_n_steps": 2,
    "eval_metrics": ["rouge_l", "exact_match"],
    "eval_num_examples": 5,
    "eval_max_new_tokens": 6,
    "save_every_n_steps": 2,
    "best_by": "rouge_l",
}
# Nothing is learnt, so nothing gets better.
STANDS_STILL = {
    "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.0},
    "val_split": 7,
    "run_val_every_n_steps": 1,
    "save_every_n_steps": 1,
    "early_stopping_patience": 2,
    "epochs": 3,
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(run_values_in: RunValues, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "run"
    assert train(FullFinetuneParams(**run_values_in(folder) | ASKS)) == 0
    return folder


def test_scores_are_those_of_the_recipe_evaluate(asked: Path, tmp_path: Path) -> None:
    rows = rows_of(asked)
    assert [row["step"] for row in rows if "eval_rouge_l" in row] == [2, 4, 6]
    for step in (2, 6):
        params = EvaluateParams(
            model_checkpoint=str(asked / f"step_00000{step}"),
            metrics=["rouge_l", "exact_match"],
            limit=5,
            max_new_tokens=6,
            output_dir=str(tmp_path / str(step)),
            device="cpu",
            log_level="WARNING",
        )
        assert evaluate(params) == 0
        scores = json.loads((tmp_path / str(step) / "scores.json").read_text())["all"]["scores"]
        for name in ("rouge_l", "exact_match"):
            assert rows[step - 1][f"eval_{name}"] == pytest.approx(scores[name]["value"])


def test_the_best_step_has_the_highest_score(asked: Path) -> None:
    scores = {row["step"]: row["eval_rouge_l"] for row in rows_of(asked) if "eval_rouge_l" in row}
    assert len(set(scores.values())) > 1
    best = max(scores, key=lambda step: (scores[step], -step))  # of equals the first one
    assert (asked / "best").resolve().name == f"step_00000{best}"


def test_scores_change_nothing_of_what_is_learnt(
    asked: Path, run_values_in: RunValues, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    values = run_values_in(alone) | {"val_split": 7, "save_every_n_steps": 2}
    assert train(FullFinetuneParams(**values)) == 0
    one, other = (folder / "latest" / "model" / "model.safetensors" for folder in (asked, alone))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_ends_when_nothing_gets_better(
    run_values_in: RunValues, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    values = run_values_in(out) | STANDS_STILL

    def run(folder: Path, **changes: Any) -> list[int]:
        assert train(FullFinetuneParams(**values | {"output_dir": str(folder)} | changes)) == 0
        return [row["step"] for row in rows_of(folder)]

    # The first validation is the best so far; two more bring nothing better.
    assert run(out) == [1, 2, 3]
    assert (out / "latest").resolve().name == "step_000003"
    assert (out / "best").resolve().name == "step_000001"
    record = read_run_record(out)
    assert record is not None
    assert record["status"] == "finished"
    # Killed after the second step: the count goes on where it was.
    again = tmp_path / "again"
    shutil.copytree(out, again, symlinks=True)
    shutil.rmtree(again / "step_000003")
    assert run(again, resume_from_checkpoint=True) == [1, 2, 3]
    one, other = (folder / "step_000003" / "model" / "model.safetensors" for folder in (out, again))
    assert one.read_bytes() == other.read_bytes()
    # It has ended; with more patience it goes on.
    assert run(again, resume_from_checkpoint=True) == [1, 2, 3]
    assert run(again, resume_from_checkpoint=True, early_stopping_patience=5) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["eval_every_n_steps=2"], "eval_every_n_steps needs dataset_val or val_split"),
        (["early_stopping_patience=2"], "early_stopping_patience needs dataset_val or val_split"),
        (["val_split=2", "best_by=rouge_l"], "best_by is no metric that is known"),
        (["val_split=2", "best_by=val_los"], "= suggestion: val_loss"),
        (["val_split=2", "best_by=los", "eval_metrics=[nope]"], "known: loss, perplexity, val_...\n"),
        (["val_split=2", "best_by=exact_match"], "best_by is measured of answers: set eval_every_n_steps"),
        (
            ["val_split=2", "best_by=eval_number", "eval_every_n_steps=2"],
            "best_by is none of eval_metrics, exact_match",
        ),
        (["best_by=loss"], "best_by needs dataset_val or val_split"),
        (["val_split=2", "eval_every_n_steps=1", "eval_metrics=[]"], "eval_metrics is an empty list"),
    ],
)
def test_what_makes_no_sense_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "tiny/full_finetune", *given]) == 2
    assert message in capsys.readouterr().err


def test_data_without_questions_is_told_before_it_starts(run_values_in: RunValues, tmp_path: Path) -> None:
    values = run_values_in(tmp_path / "out") | ASKS
    values["dataset"] = values["dataset"] | {"train_on_input": True}
    with pytest.raises(ConfigError, match="nothing in the validation data is a question"):
        train(FullFinetuneParams(**values))


def test_a_metric_that_a_validation_lacks_is_named(run_values_in: RunValues, tmp_path: Path) -> None:
    from tune.errors import TrainingError

    values = run_values_in(tmp_path / "out") | {"val_split": 3, "best_by": "val_margin", "epochs": 1}
    with pytest.raises(TrainingError, match="a validation here measures val_loss, val_perplexity"):
        train(FullFinetuneParams(**values))


def test_the_batch_that_is_trained_on_decides_nothing() -> None:
    state = TrainState(seed=1, best_by="accuracy", num_steps=9, patience=2)
    for step, metrics in enumerate(
        ({"val_accuracy": 0.5, "accuracy": 0.1}, {"accuracy": 0.9}, {"val_accuracy": 0.4})
    ):
        state.step = step
        state.note_metrics(metrics)
        state.note_saving()
    assert (state.best_step, state.num_stale, state.lowest_score) == (0, 1, -0.5)
    state.note_metrics({"val_accuracy": float("nan")})  # no better than nothing
    assert state.num_steps == 2
