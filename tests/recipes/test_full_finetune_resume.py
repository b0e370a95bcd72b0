"""A run that cannot be lost: killed, stopped, damaged, out of space; resumed, it is the same run."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests import warm_python
from tests.components import with_arguments
from tune.errors import CheckpointError, TrainingError
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.training import list_saved_steps, verify_step
from tune.training.saving.run_state import read_run

ROOT = Path(__file__).resolve().parents[2]
# With dropout, so that a random state that is not restored shows.
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "schedule_and_clipping": {
        "lr_scheduler": {"_component_": "cosine", "num_warmup_steps": 2},
        "clip_grad_norm": 0.1,
    },
    "milestones": {"lr_scheduler": {"_component_": "MultiStepLR", "milestones": [2, 6]}},
    "in_backward": {"optimizer_in_bwd": True, "gradient_accumulation_steps": 1, "max_steps_per_epoch": 4},
    "momentum": {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}},
    "frozen": {
        "freeze": ["tok_embeddings", "layers.0-0"],
        "decay_norms_and_biases": False,
        "lr_scheduler": "cosine",
    },
    "bf16": {"dtype": "bf16"},
    "packed": {"dataset": "packed", "batch_size": 1, "epochs": 3},
    "mixed": {"val_split": 4, "mix_until": "all_exhausted", "epochs": 3},
    "workers": {"num_workers": 2},
    "background": {"enable_async_checkpointing": True},
    "streamed": {"max_steps": 9, "max_steps_per_epoch": 4, "run_val_every_n_steps": 2},
    "cut_run": {"max_steps": 6, "epochs": 1, "lr_scheduler": {"_component_": "linear", "warmup_ratio": 0.3}},
    "cut_epochs": {"max_steps_per_epoch": 3, "epochs": 3},
    # Some matrices are large enough for 8 bits, some are not.
    "eight_bits": {"optimizer": {"_component_": "bitsandbytes.optim.AdamW8bit", "lr": 0.01}},
    "eight_bits_paged_in_backward": {
        "optimizer": {"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": 0.01, "min_8bit_size": 900},
        "optimizer_in_bwd": True,
        "gradient_accumulation_steps": 1,
        "enable_activation_checkpointing": True,
        "max_steps_per_epoch": 3,
    },
}


def dropping(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "model": {**values["model"], "attn_dropout": 0.2}, "save_every_n_steps": 1}


@pytest.fixture
def with_dropout(run_values: dict[str, Any]):
    return lambda **changes: FullFinetuneParams(**{**dropping(run_values), **changes})


@pytest.fixture(scope="module")
def eight_steps(run_values_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `with_dropout()` that nothing happens to: it is made once, and only copies of it come to harm."""
    return made_in(tmp_path_factory.mktemp("eight") / "out", run_values_in, 2)


@pytest.fixture(scope="module")
def four_steps(run_values_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one epoch."""
    return made_in(tmp_path_factory.mktemp("four") / "out", run_values_in, 1)


def made_in(output_dir: Path, run_values_in, epochs: int) -> Path:
    assert recipe_main(FullFinetuneParams(**dropping(run_values_in(output_dir)) | {"epochs": epochs})) == 0
    return output_dir


def model_bytes(output_dir: Path) -> bytes:
    return (output_dir / "latest" / "model" / "model.safetensors").read_bytes()


def copy_of(whole: Path, tmp_path: Path) -> Path:
    """Return a copy where the params of the tests have their output."""
    return Path(shutil.copytree(whole, tmp_path / "out", symlinks=True))


def losses_of(output_dir: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def assert_same_run(left: Path, right: Path) -> None:
    """The weights byte for byte, the metrics line for line, and what would come next."""
    assert model_bytes(left) == model_bytes(right)
    assert losses_of(left) == losses_of(right)
    assert read_run(left / "latest" / "state") == read_run(right / "latest" / "state")
    files = [torch.load(path / "latest" / "state" / "run.pt", weights_only=True) for path in (left, right)]
    for name in ("sampler", "scaler"):
        assert files[0]["parts"][name] == files[1]["parts"][name]


@pytest.mark.parametrize("name", CHANGES)
def test_resumed_anywhere_it_is_the_same_run(
    with_dropout, eight_steps: Path, tmp_path: Path, name: str
) -> None:
    changes = dict(CHANGES[name])
    if name == "packed":
        changes["dataset"] = with_arguments(with_dropout().dataset, packed=True, max_seq_len=50)
    if name == "streamed":
        held = with_dropout().dataset
        streaming = {"streaming": True, "shuffle_buffer": 7, "packed": True, "max_seq_len": 50}
        changes |= {"dataset": with_arguments(held, **streaming), "dataset_val": held}
    if name == "mixed":
        one = with_dropout().dataset
        parts = zip(("train[:15]", "train[15:]"), (0.6, 0.4), strict=True)
        changes["dataset"] = tuple(with_arguments(one, split=split, weight=weight) for split, weight in parts)
    if "eight_bits" in name:
        pytest.importorskip("bitsandbytes")
    whole = eight_steps if name == "plain" else tmp_path / "whole"
    if name != "plain":
        recipe_main(with_dropout(output_dir=str(whole), **changes))
    steps = [saved.step for saved in list_saved_steps(whole)]
    # The middle of an epoch; where epochs differ, the end of one; for one kind of run, the very ends as well.
    middle = steps[-1] // 2
    places = {"plain": (1, middle, middle + 1, steps[-1] - 1), "packed": (middle, middle + 1)}
    for step in places.get(name, (middle,) if name.startswith("cut") else (middle + 1,)):
        part = tmp_path / f"from_{step}"
        part.mkdir()
        shutil.copytree(whole / f"step_{step:06d}", part / f"step_{step:06d}")
        shutil.copy(whole / "metrics.jsonl", part)  # lines later than the step, as after a kill
        # Where the tokens live decides nothing: they are made anew, and once they are kept nowhere.
        kept = "off" if name == "workers" else str(tmp_path / f"cache_{step}")
        resumed = with_dropout(
            output_dir=str(part), resume_from_checkpoint=True, data_cache_dir=kept, **changes
        )
        recipe_main(resumed)
        assert_same_run(whole, part)


def test_a_drawn_seed_is_kept(with_dropout, tmp_path: Path) -> None:
    recipe_main(with_dropout(seed=None, epochs=1))
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    shutil.copytree(out, whole, symlinks=True)
    for step in (2, 3, 4):
        shutil.rmtree(out / f"step_{step:06d}")
    recipe_main(with_dropout(seed=None, epochs=1, resume_from_checkpoint=True))
    assert_same_run(whole, out)


def test_resuming_needs_nothing_but_the_saved_step(with_dropout, four_steps: Path, tmp_path: Path) -> None:
    """The weights it once started from, and their tokenizer, may be gone."""
    shutil.copytree(four_steps / "step_000004" / "model", tmp_path / "start")
    tuning = {
        "train_from_scratch": False,
        "model": "auto",
        "tokenizer": "auto",
        "checkpointer": {
            "_component_": "FullModelHFCheckpointer",
            "checkpoint_dir": str(tmp_path / "start"),
            "checkpoint_files": ["model.safetensors"],
        },
    }
    recipe_main(with_dropout(**tuning))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "out", whole, symlinks=True)
    for step in (6, 7, 8):
        shutil.rmtree(tmp_path / "out" / f"step_{step:06d}")
    shutil.rmtree(tmp_path / "start")
    recipe_main(with_dropout(**tuning, resume_from_checkpoint=True))
    assert_same_run(whole, tmp_path / "out")


def test_the_step_it_resumed_from_may_be_deleted(with_dropout, four_steps: Path, tmp_path: Path) -> None:
    """Its tokenizer was read from there, and belongs into every later step."""
    tuning = {
        "train_from_scratch": False,
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": str(four_steps),
        "keep_last_n_checkpoints": 1,
    }
    recipe_main(with_dropout(**tuning, epochs=1))
    recipe_main(with_dropout(**tuning, epochs=2, resume_from_checkpoint=True))
    (last,) = list_saved_steps(tmp_path / "out")
    assert last.step == 8
    assert (last.model_dir / "tokenizer.model").read_bytes() == (
        four_steps / "latest" / "model" / "tokenizer.model"
    ).read_bytes()


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(
    with_dropout, eight_steps: Path, tmp_path: Path
) -> None:
    """Or the next resume would take one of the run that was taken back."""
    out = copy_of(eight_steps, tmp_path)
    earlier = {
        "_component_": "FullModelCheckpointer",
        "recipe_checkpoint": "step_000003",
    }
    recipe_main(with_dropout(checkpointer=earlier, resume_from_checkpoint=True))
    assert_same_run(eight_steps, out)
    assert sorted(path.name for path in out.glob("superseded_*")) == [
        f"superseded_step_{step:06d}" for step in range(4, 9)
    ]
    assert [saved.step for saved in list_saved_steps(out)] == list(range(1, 9))


def test_a_run_killed_before_its_first_save_leaves_no_lines(
    with_dropout, eight_steps: Path, tmp_path: Path
) -> None:
    out = copy_of(eight_steps, tmp_path)
    for saved in list_saved_steps(out):  # as if it had been killed before: the lines are there, they are not
        shutil.rmtree(saved.path)
    recipe_main(with_dropout(resume_from_checkpoint=True))
    for name in ("metrics.jsonl", "log.txt"):
        assert len((out / name).read_text().splitlines()) == 8, name


def test_a_finished_run_has_nothing_left_to_do(with_dropout, eight_steps: Path, tmp_path: Path) -> None:
    before = model_bytes(copy_of(eight_steps, tmp_path))
    recipe = FullFinetuneRecipe(with_dropout(resume_from_checkpoint=True))
    recipe.setup()
    recipe.train()
    recipe.monitor.log_summary(recipe.state)
    recipe.cleanup()
    assert model_bytes(tmp_path / "out") == before
    assert recipe.state.loss == losses_of(tmp_path / "out")[-1][1]


def test_more_epochs_without_a_schedule_go_on(
    with_dropout, four_steps: Path, eight_steps: Path, tmp_path: Path
) -> None:
    out = copy_of(four_steps, tmp_path)
    recipe_main(with_dropout(epochs=2, resume_from_checkpoint=True))
    assert_same_run(eight_steps, out)


def test_a_damaged_step_is_skipped_and_made_again(
    with_dropout, eight_steps: Path, tmp_path: Path, capsys
) -> None:
    out = copy_of(eight_steps, tmp_path)
    before, rows = model_bytes(out), losses_of(out)
    damaged = out / "step_000008" / "model" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (out / "step_000007" / "manifest.json").unlink()
    recipe_main(with_dropout(resume_from_checkpoint=True))
    text = capsys.readouterr().err
    assert "step_000008: the content of model/model.safetensors has changed" in text
    assert "step_000007: there is no manifest.json" in text
    assert model_bytes(out) == before
    assert losses_of(out) == rows
    for saved in list_saved_steps(out):
        verify_step(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 2}, "sequences_per_step: was 6, is 4"),
        ({"seed": 4}, "seed: was 3, is 4"),
        ({"optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.02}}, "optimizer.lr: was 0.01, is 0.02"),
        ({"epochs": 4, "lr_scheduler": "constant"}, "lr_scheduler: was"),
        ({"dtype": "bf16"}, "dtype: was fp32, is bf16"),
    ],
)
def test_another_config_is_refused_with_the_difference(
    with_dropout, four_steps, tmp_path, changes, words
) -> None:
    before = model_bytes(copy_of(four_steps, tmp_path))
    recipe = FullFinetuneRecipe(with_dropout(resume_from_checkpoint=True, **{"epochs": 1, **changes}))
    with pytest.raises(CheckpointError, match="cannot be continued exactly") as caught:
        recipe.setup()
    recipe.cleanup()
    assert words in str(caught.value)
    assert model_bytes(tmp_path / "out") == before


def test_a_run_stopped_by_a_bad_step_goes_on_as_if_without_it(
    with_dropout, eight_steps: Path, tmp_path: Path
) -> None:
    """The step before is saved with the random states from before the bad one, whose dropout was drawn twice."""
    recipe = FullFinetuneRecipe(with_dropout(save_every_n_steps=None, on_non_finite="stop"))
    recipe.setup()
    batch_loss = recipe.batch_loss

    def break_step_6(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        total, num_targets = batch_loss(batch)
        return total * (float("nan") if recipe.state.step == 6 else 1.0), num_targets

    recipe.batch_loss = break_step_6  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 6: the loss is nan"):
        recipe.train()
    recipe.cleanup()
    assert list_saved_steps(tmp_path / "out")[-1].step == 5
    recipe_main(with_dropout(resume_from_checkpoint=True, save_every_n_steps=None))
    assert_same_run(eight_steps, tmp_path / "out")


@pytest.mark.parametrize("schedule", [None, {"_component_": "cosine", "num_warmup_steps": 2}])
def test_an_allowed_change_takes_effect(
    with_dropout, tmp_path: Path, schedule: dict[str, Any] | None
) -> None:
    """From the step it is made at, the rate is that of a run that always had the new settings."""
    rates = {}
    for lr, out in ((0.01, "out"), (0.002, "other")):
        optimizer = {"_component_": "torch.optim.AdamW", "lr": lr, "weight_decay": lr}
        changes = {"optimizer": optimizer, "lr_scheduler": schedule, "log_every_n_steps": 1}
        recipe_main(with_dropout(output_dir=str(tmp_path / out), **changes))
        rates[out] = rates_of(tmp_path / out)
    for saved in list_saved_steps(tmp_path / "out")[6:]:
        shutil.rmtree(saved.path)
    resumed = FullFinetuneRecipe(
        with_dropout(resume_from_checkpoint=True, allow_changes_on_resume=True, **changes)
    )
    resumed.setup()
    resumed.train()
    resumed.cleanup()
    assert resumed.state.step == 8
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.002
    assert rates_of(tmp_path / "out") == pytest.approx(rates["out"][:6] + rates["other"][6:])


def rates_of(output_dir: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_other_data_is_refused(with_dropout, data_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    shutil.copy(data_file, copy)
    dataset = with_arguments(with_dropout().dataset, source=str(copy))
    recipe_main(with_dropout(dataset=dataset, epochs=1))
    rows = copy.read_text().splitlines()
    rows[11] = json.dumps({"question": "seven", "answer": "twelve"})
    copy.write_text("\n".join(rows) + "\n")
    recipe = FullFinetuneRecipe(with_dropout(dataset=dataset, epochs=1, resume_from_checkpoint=True))
    with pytest.raises(CheckpointError, match="dataset: was 23 examples, "):
        recipe.setup()
    recipe.cleanup()


def test_out_of_space_is_a_clear_error_and_loses_nothing(
    with_dropout, four_steps: Path, tmp_path: Path
) -> None:
    out = copy_of(four_steps, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recipe = FullFinetuneRecipe(with_dropout(resume_from_checkpoint=True))
    recipe.setup()
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not save step_000005.*newest is step_000004"):
            recipe.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
        recipe.cleanup()
    assert [saved.step for saved in list_saved_steps(out)] == [1, 2, 3, 4]
    for saved in list_saved_steps(out):
        verify_step(saved)
    assert not list(out.glob(".unfinished*"))
    recipe_main(with_dropout(resume_from_checkpoint=True))
    assert [step for step, _ in losses_of(out)] == list(range(1, 9))


# ---- real processes


def write_config(run_values: dict[str, Any], path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**dropping(run_values), "log_level": "INFO", **changes}))
    return path


def start(config: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tune.recipes.full_finetune", "--config", str(config), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return warm_python.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], path: Path, num_lines: int = 0) -> None:
    """Return once the file is there (with so many lines); the process must live meanwhile."""
    deadline = time.monotonic() + 600
    while not (path.exists() and (not num_lines or path.read_text().count("\n") >= num_lines)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_at_a_random_moment_it_is_the_same_run(run_values, eight_steps: Path, tmp_path: Path) -> None:
    config = write_config(run_values, tmp_path / "config.yaml")
    out = tmp_path / "out"
    for _ in range(20):
        process = start(config)
        wait_for(process, out / "step_000002")
        time.sleep(random.Random().uniform(0, 0.1))  # another moment each time, often in the middle of saving
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
        assert process.returncode == 0  # a busy machine let it finish first: once more
        shutil.rmtree(out)
    process = start(config, "resume_from_checkpoint=true")
    _, text = process.communicate()
    assert process.returncode == 0, text
    assert "Resumed from" in text
    assert_same_run(eight_steps, out)
    sessions = json.loads((out / "run.json").read_text())["sessions"]
    assert [session["status"] for session in sessions] == ["killed", "finished"]
    console = (out / "console.log").read_text()
    assert console.count("=== tune, ") == 2  # what the first one said is still there
    assert console.count("\nSteps: ") == 2
    assert console.count("step_000002 in ") <= 1  # the kill may come between the folder's name and the line


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_finishes_the_step_and_saves(run_values, tmp_path, signum, exit_code) -> None:
    config = write_config(run_values, tmp_path / "config.yaml", epochs=500, save_every_n_steps=None)
    out = tmp_path / "out"
    process = start(config)
    wait_for(process, out / "metrics.jsonl", num_lines=3)
    process.send_signal(signum)
    _, text = process.communicate(timeout=600)
    assert process.returncode == exit_code, text
    assert "Traceback" not in text
    assert "resume_from_checkpoint=true" in text
    steps = [step for step, _ in losses_of(out)]
    newest = list_saved_steps(out)[-1]
    verify_step(newest)
    assert newest.step == steps[-1]
    assert steps == list(range(1, newest.step + 1))
