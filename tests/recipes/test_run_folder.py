"""What a run leaves in its folder, and that a resumed run leaves the same numbers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune.cli.main import main
from tune.errors import TrainingError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main


def lines_of(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(run_values_in: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that logs every third, and saves every second."""
    from tune.recipes.params.full_finetune import FullFinetuneParams

    folder = tmp_path_factory.mktemp("whole") / "out"
    changes = {"log_every_n_steps": 3, "save_every_n_steps": 2, "log_level": "INFO"}
    assert recipe_main(FullFinetuneParams(**run_values_in(folder) | changes)) == 0
    return folder


def test_a_line_is_the_mean_of_its_steps(whole: Path, make_params: Callable[..., Any]) -> None:
    params = make_params()  # logs each step
    assert recipe_main(params) == 0
    each, due = lines_of(Path(params.output_dir)), lines_of(whole)
    assert list(due) == [3, 6, 8]
    rows = [json.loads(line) for line in (Path(params.output_dir) / "metrics.jsonl").read_text().splitlines()]
    targets = [0, *(row["num_trained_tokens"] for row in rows)]
    for first, last in ((1, 3), (4, 6), (7, 8)):
        steps = range(first, last + 1)
        weights = [targets[step] - targets[step - 1] for step in steps]
        mean = sum(each[step] * weight for step, weight in zip(steps, weights, strict=True)) / sum(weights)
        assert due[last] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_between_two_lines(
    whole: Path, make_params: Callable[..., Any], tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(whole, folder, symlinks=True)
    for later in range(step + 1, 9):
        shutil.rmtree(folder / f"step_{later:06}", ignore_errors=True)
    settings = {"log_every_n_steps": 3, "save_every_n_steps": 2, "resume_from_checkpoint": True}
    assert recipe_main(make_params(output_dir=str(folder), **settings)) == 0
    assert lines_of(folder) == lines_of(whole)  # bit for bit
    sessions = record_of(folder)["sessions"]
    assert [(each["from_step"], each["step"]) for each in sessions] == [(0, 8), (step, 8)]
    # Once more, and there is nothing to do.
    assert recipe_main(make_params(output_dir=str(folder), log_level="INFO", **settings)) == 0
    console = (folder / "console.log").read_text()
    assert "Nothing left to do: all 8 steps of this run are done." in console
    assert lines_of(folder) == lines_of(whole)


def test_stopped_between_two_lines(
    whole: Path, make_params: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    settings = {"output_dir": str(folder), "log_every_n_steps": 3, "save_every_n_steps": 2}
    step_of = FullFinetuneRecipe.train_step

    def stop_at_the_fifth(self: FullFinetuneRecipe, micro_batches: Any) -> Any:
        if self.state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step_of(self, micro_batches)

    assert threading.current_thread() is threading.main_thread()
    with monkeypatch.context() as patch:
        patch.setattr(FullFinetuneRecipe, "train_step", stop_at_the_fifth)
        assert recipe_main(make_params(**settings)) == 143
    assert record_of(folder)["status"] == "stopped"
    assert list(lines_of(folder)) == [3, 5]  # a last line, though none was due
    assert recipe_main(make_params(resume_from_checkpoint=True, **settings)) == 0
    assert {step: loss for step, loss in lines_of(folder).items() if step != 5} == lines_of(whole)


def test_the_folder_tells_the_story(whole: Path) -> None:
    console = (whole / "console.log").read_text()
    said = [
        "seed 3",
        "Data: ",
        "Model: ",
        "step 3/8 | loss ",
        "(mean of 3)",
        "Saved ",
        "Finished 8 of 8",
        "tune chat",
    ]
    assert [words for words in said if words not in console] == []
    record = record_of(whole)
    assert record["status"] == "finished"
    assert record["result"]["step"] == 8
    assert record["data"]["num_rows"] == 23
    assert record["model"]["parameters"] == record["model"]["trained"] > 0
    assert record["memory"]["predicted_gib"] > 0
    assert record["recipe"]["file"].endswith("full_finetune.py")
    config = (whole / "config.yaml").read_text().splitlines()
    assert config[0].startswith("# Written by tune 0.")
    headings = [line for line in config if line.startswith("# ")]
    assert len(headings) == len(set(headings))
    page = (whole / "report.html").read_text()
    assert page.count('class="curve') >= 7
    assert (whole / "loss_curve.png").stat().st_size > 1000


def test_the_printed_command_works_as_printed(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"^Try it: +tune (.*)$", (whole / "console.log").read_text(), re.MULTILINE)
    capsys.readouterr()
    assert main([*shlex.split(line), "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out


def test_a_run_that_fails_says_why(make_params: Callable[..., Any]) -> None:
    growing = {"_component_": "torch.optim.SGD", "lr": 1e3, "weight_decay": 900.0}  # a million times a step
    params = make_params(optimizer=growing, save_every_n_steps=1)
    with pytest.raises(TrainingError, match=r"the (loss|gradient norm) is"):
        recipe_main(params)
    folder = Path(params.output_dir)
    record = record_of(folder)
    assert record["status"] == "failed"
    assert "so the step was not taken" in record["sessions"][0]["error"]
    assert "so the step was not taken" in (folder / "console.log").read_text()
    assert "so the step was not taken" in (folder / "report.html").read_text()
