"""Preference tuning: log 2 at first, one step however it is cut, killed and resumed, on two processes as on one."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import PATIENCE, launch, start
from tests.recipes.preference_runs import (
    NUM_PAIRS,
    as_overrides,
    assert_same_weights,
    rows_of,
)
from tune.config import Component, ParamsError
from tune.datasets import instruct_dataset, preference_dataset, unpaired_dataset
from tune.errors import CheckpointError, ConfigError
from tune.recipes.lora_finetune import LoraFinetuneRecipe
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.preference_finetune import PreferenceFinetuneParams
from tune.recipes.preference_finetune import PreferenceFinetuneRecipe, recipe_main
from tune.tokenizers import from_checkpoint as tokenizer_from
from tune.training import build_loss

SGD = {"_component_": "torch.optim.SGD", "lr": 0.05}
LORA = {"lora_rank": 3, "apply_lora_to_mlp": True}
MANY_RUNS = Path(__file__).resolve().parents[1] / "distributed" / "many_runs.py"


@pytest.fixture(scope="module")
def values_in(base: Path, pairs_file: Path) -> Callable[..., dict[str, Any]]:
    def values(output_dir: Path, **changes: Any) -> dict[str, Any]:
        dataset = {"_component_": "preference", "source": str(pairs_file)}
        common = {
            "output_dir": str(output_dir),
            "model_checkpoint": str(base),
            "dataset": dataset | changes.pop("data", {}),
            "batch_size": 4,
            "epochs": 2,
            "optimizer": SGD,
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
        }
        return common | changes

    return values


@pytest.fixture(scope="module")
def run_in(values_in: Callable[..., dict[str, Any]]) -> Callable[..., list[dict[str, Any]]]:
    """Run the recipe in a folder; return what it logged."""

    def run(output_dir: Path, **changes: Any) -> list[dict[str, Any]]:
        assert recipe_main(PreferenceFinetuneParams(**values_in(output_dir, **changes))) == 0
        return rows_of(output_dir)

    return run


MEASURED = ("loss", "rewards_chosen", "rewards_rejected", "margin", "accuracy", "logps_chosen", "kl")


def assert_same_rows(one: list[dict[str, Any]], other: list[dict[str, Any]], prefix: str = "") -> None:
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        names = [prefix + name for name in MEASURED if prefix + name in mine]
        if (
            abs(mine[prefix + "margin"]) < 1e-5
        ):  # a reference computed in other batches breaks ties by its last digit
            names.remove(prefix + "accuracy")
        assert len(names) >= 5
        for name in names:
            assert theirs[name] == pytest.approx(mine[name], rel=2e-5, abs=2e-5), (mine["step"], name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bf16"},
        {"dtype": "bf16", "param_dtype": "fp32"},
        LORA,
        {**LORA, "dtype": "bf16"},
        {**LORA, "use_dora": True, "lora_dropout": 0.0},
        {**LORA, "quantize_base": True, "dtype": "bf16"},
        {"loss": {"_component_": "dpo", "label_smoothing": 0.2}},
        {"loss": "robust"},
        {"loss": "sigmoid_norm", "enable_activation_checkpointing": True},
    ],
    ids=lambda changes: "_".join(map(str, changes)) or "full",
)
def test_the_first_step_loses_log_2(run_in, tmp_path: Path, changes: dict[str, Any]) -> None:
    # one pair alone, so that the mean is not rounded either
    (row,) = run_in(tmp_path / "out", max_steps=1, batch_size=1, **changes)
    assert row["loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert row["rewards_chosen"] == row["rewards_rejected"] == row["margin"] == row["kl"] == 0.0
    assert row["grad_norm"] > 0
    result = json.loads((tmp_path / "out" / "run.json").read_text())["result"]
    assert row["num_trained_pairs"] == result["num_trained_pairs"] == 1
    assert not {"num_trained_tokens", "trained_tokens_per_second"} & (row.keys() | result.keys())


def test_a_step_is_the_same_however_it_is_cut(run_in, tmp_path: Path) -> None:
    for name, changes in (("full", {}), ("lora", LORA), ("orpo", {"loss": "orpo"})):
        whole = run_in(tmp_path / f"{name}_6", batch_size=6, **changes)
        cut = run_in(tmp_path / f"{name}_2", batch_size=2, gradient_accumulation_steps=3, **changes)
        assert_same_rows(whole, cut)
        assert abs(whole[-1]["loss"] - whole[0]["loss"]) > 1e-4
        assert_same_weights(tmp_path / f"{name}_6", tmp_path / f"{name}_2", 3e-6)


def test_packed_equals_unpacked(run_in, tmp_path: Path) -> None:
    """All pairs in each step, for packs are shuffled as a whole."""
    for name, changes in (("full", {}), ("orpo", {"loss": "orpo"}), ("ipo", {**LORA, "loss": "ipo"})):
        apart = run_in(tmp_path / name, batch_size=NUM_PAIRS, epochs=3, data={"max_seq_len": 24}, **changes)
        packed = run_in(
            tmp_path / f"{name}_packed",
            batch_size=NUM_PAIRS,
            epochs=3,
            data={"max_seq_len": 24, "packed": True},
            **changes,
        )
        assert_same_rows(apart, packed)
        assert [row["num_tokens"] for row in apart] == [row["num_tokens"] for row in packed]
        assert_same_weights(tmp_path / name, tmp_path / f"{name}_packed", 3e-6)


def test_validation_measures_the_same(run_in, tmp_path: Path, pairs_file: Path) -> None:
    """Without steps of any size, what is validated is what is trained on."""
    rows = run_in(
        tmp_path / "out",
        batch_size=NUM_PAIRS,
        batch_size_val=3,
        optimizer={**SGD, "lr": 0.5},
        dataset_val={"source": str(pairs_file)},
        epochs=3,
        best_by="accuracy",
        **LORA,
    )
    for before, after in pairwise(rows):
        for name in ("loss", "margin", "accuracy", "logps_rejected", "rewards_chosen", "kl"):
            assert before[f"val_{name}"] == pytest.approx(after[name], rel=1e-4, abs=1e-5), name
    assert not any("val_perplexity" in row for row in rows)
    best = (tmp_path / "out" / "best").resolve().name
    score = {row["step"]: row["val_accuracy"] for row in rows}
    assert score[int(best.split("_")[1])] == max(score.values())


def test_the_reference_goes_with_an_adapter_that_is_gone_on_from(run_in, tmp_path: Path) -> None:
    run_in(tmp_path / "first", **LORA)
    changes = {"checkpointer": {"adapter_checkpoint": str(tmp_path / "first" / "latest" / "adapter")}}
    changes["checkpointer"]["_component_"] = "tune.training.FullModelCheckpointer"
    rows = run_in(tmp_path / "second", save_every_n_steps=1, **changes)
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert rows[-1]["kl"] != 0.0
    # resumed, it still compares with the adapter it began with
    part = tmp_path / "resumed"
    shutil.copytree(tmp_path / "second", part, symlinks=True)
    for step in part.glob("step_*"):
        if int(step.name.split("_")[1]) > 2:
            shutil.rmtree(step)
    again = run_in(part, save_every_n_steps=1, resume_from_checkpoint=True, **changes)
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_killed_and_resumed_it_is_the_same_run(
    run_in, values_in, tmp_path: Path, changes: dict[str, Any]
) -> None:
    more = {**changes, "save_every_n_steps": 1, "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01}}
    whole = run_in(tmp_path / "whole", **more)
    values = values_in(tmp_path / "out", **more)
    process = start(1, "preference_finetune", *as_overrides(values))
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "out" / "step_000003").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    rows = run_in(tmp_path / "out", resume_from_checkpoint=True, **more)
    assert [[row[name] for name in MEASURED] for row in rows] == [
        [row[name] for name in MEASURED] for row in whole
    ]
    assert_same_weights(tmp_path / "whole", tmp_path / "out", 0.0)


def test_what_is_measured_is_the_mean_since_the_line_before(run_in, tmp_path: Path) -> None:
    """As the loss is: 13 pairs in batches of 4, so that the last step of each pass counts for less."""
    common = {"epochs": 2, "save_every_n_steps": 2, "clip_grad_norm": 1.0}
    each = run_in(tmp_path / "each", **common)
    lines = run_in(tmp_path / "lines", log_every_n_steps=3, **common)
    assert [row["step"] for row in lines] == [3, 6, 8]
    pairs = [4, 4, 4, 1] * 2
    for line, steps in zip(lines, (slice(0, 3), slice(3, 6), slice(6, 8)), strict=True):
        for name in MEASURED:
            total = sum(row[name] * num for row, num in zip(each[steps], pairs[steps], strict=True))
            assert line[name] == pytest.approx(total / sum(pairs[steps]), rel=1e-6, abs=1e-7), name
    # a resumed run begins with what had come together
    for step in (tmp_path / "lines").glob("step_*"):
        if int(step.name.split("_")[1]) > 2:
            shutil.rmtree(step)
    again = run_in(tmp_path / "lines", log_every_n_steps=3, resume_from_checkpoint=True, **common)
    assert [[row[name] for name in MEASURED] for row in again] == [
        [row[name] for name in MEASURED] for row in lines
    ]


def test_a_reference_computed_beforehand_is_the_same_run(run_in, tmp_path: Path) -> None:
    cache = {"data_cache_dir": str(tmp_path / "cache"), "dataset_val": {}}
    for name, changes in (
        ("full", {"save_every_n_steps": 1}),
        ("lora", LORA),
        ("nf4", {**LORA, "quantize_base": True}),  # not what was computed for the base in full precision
        ("packed", {"data": {"packed": True, "max_seq_len": 24}}),
    ):
        changes = cache | changes | {"dataset_val": {"split": "train[:5]"}}
        each = run_in(tmp_path / name, **changes)
        once = run_in(tmp_path / f"{name}_once", precompute_reference=True, **changes)
        assert_same_rows(each, once)
        assert_same_rows(each[-1:], once[-1:], prefix="val_")
        assert_same_weights(tmp_path / name, tmp_path / f"{name}_once", 3e-6)
        assert once[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    # found again, also by a run that goes on from other weights
    part = tmp_path / "full_once"
    for step in part.glob("step_*"):
        if int(step.name.split("_")[1]) > 3:
            shutil.rmtree(step)
    entries = {path.name for path in (tmp_path / "cache").glob("*/entry.json")}
    changes = cache | {"save_every_n_steps": 1, "dataset_val": {"split": "train[:5]"}}
    before = rows_of(tmp_path / "full_once")
    again = run_in(part, precompute_reference=True, resume_from_checkpoint=True, **changes)
    assert [row["loss"] for row in again] == [row["loss"] for row in before]
    # computed anew, by the base and not by what was learnt, where it is gone
    shutil.rmtree(tmp_path / "cache")
    for step in part.glob("step_*"):
        if int(step.name.split("_")[1]) > 3:
            shutil.rmtree(step)
    again = run_in(part, precompute_reference=True, resume_from_checkpoint=True, **changes)
    assert [row["loss"] for row in again] == [row["loss"] for row in before]
    assert entries == {path.name for path in (tmp_path / "cache").glob("*/entry.json")}


def test_another_base_is_refused_on_resume(run_in, base: Path, tmp_path: Path) -> None:
    run_in(tmp_path / "out", save_every_n_steps=1)
    shutil.rmtree(tmp_path / "out" / "step_000008")
    other = shutil.copytree(base, tmp_path / "other")
    model = next(other.glob("*.safetensors"))
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    with pytest.raises(CheckpointError, match="base"):
        run_in(
            tmp_path / "out", model_checkpoint=str(other), save_every_n_steps=1, resume_from_checkpoint=True
        )


def test_two_processes_train_as_one(run_in, values_in, pairs_file: Path, tmp_path: Path) -> None:
    judged = {"loss": "kto", "dataset": {"_component_": "unpaired", "source": str(pairs_file)}}
    cases: dict[str, dict[str, Any]] = {
        "full": {"gradient_accumulation_steps": 2},
        "orpo": {"loss": "orpo"},
        "once": {"precompute_reference": True, "data_cache_dir": "off"},
        "lora": LORA,
        "lora_sharded": {**LORA, "data_parallel_shard_dim": 2},
        # z is that of a micro-batch, over all processes: whole batches, in their order
        "kto": {**judged, "shuffle": False, "batch_size": 26, "epochs": 3},
    }
    listed = []
    for name, changes in cases.items():
        changes = {"dataset_val": {"source": str(pairs_file)}, "save_every_epoch": False, **changes}
        one = {key: value for key, value in changes.items() if key != "data_parallel_shard_dim"}
        run_in(tmp_path / f"{name}_1", **one)
        many = changes | {"batch_size": changes.get("batch_size", 4) // 2}
        values = values_in(tmp_path / f"{name}_2", **many)
        listed.append({"recipe": "preference_finetune", "values": values})
    (tmp_path / "runs.json").write_text(json.dumps(listed))
    done = launch(2, MANY_RUNS, str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr
    for name in cases:
        one, two = tmp_path / f"{name}_1", tmp_path / f"{name}_2"
        if name == "kto":  # prompts meet other answers, in each process its own
            assert len(rows_of(one)) == len(rows_of(two))
            assert rows_of(two)[0]["loss"] == pytest.approx(rows_of(one)[0]["loss"], rel=1e-6)
            continue
        assert_same_rows(rows_of(one), rows_of(two))
        validated = [[row for row in rows_of(each) if "val_loss" in row] for each in (one, two)]
        assert_same_rows(*validated, prefix="val_")
        assert_same_weights(one, two, 3e-6)


def test_data_of_another_kind_is_refused(values_in, base: Path, pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="whose answers have no others to be compared with"):
        PreferenceFinetuneParams(**values_in(tmp_path, dataset={"_component_": "instruct", "source": "x"}))
    values = values_in(tmp_path)
    with pytest.raises(ParamsError, match="use the recipe preference_finetune"):
        FullFinetuneParams(**values)
    with pytest.raises(ParamsError, match=r"is KTOLoss, and the dataset holds pairs: use loss=dpo"):
        PreferenceFinetuneParams(**values_in(tmp_path, loss="kto"))
    judged = {"_component_": "unpaired", "source": str(pairs_file)}
    with pytest.raises(ParamsError, match=r"is DPOLoss, and the dataset holds judged answers: use loss=kto"):
        PreferenceFinetuneParams(**values_in(tmp_path, dataset=judged))
    # data of one's own is only known once it is read
    tokenizer = tokenizer_from(base)
    pairs = preference_dataset(tokenizer, source=str(pairs_file))
    with pytest.raises(ConfigError, match=r"KTOLoss learns from judged answers .* holds pairs: loss=dpo"):
        build_loss(Component("tune.modules.loss.preference.KTOLoss"), pairs)
    answers = unpaired_dataset(tokenizer, source=str(pairs_file))
    with pytest.raises(ConfigError, match=r"DPOLoss learns from pairs .* holds judged answers: loss=kto"):
        build_loss(Component("tune.modules.loss.preference.DPOLoss"), pairs, answers)
    alone = instruct_dataset(
        tokenizer,
        source=str(pairs_file),
        column_map={"input": "prompt", "output": "chosen"},
        ignore_columns=["rejected"],
    )
    with pytest.raises(ConfigError, match="answers without others to compare them with"):
        build_loss(Component("tune.modules.loss.preference.DPOLoss"), alone)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_alpha": 32.0}, "is for adapters, and every weight is trained: set lora_rank"),
        ({"quantize_base": True}, "is for adapters, and every weight is trained"),
        ({"loss": "kto", "batch_size": 1}, "use at least 2"),
        ({"loss": "LinearCrossEntropyLoss"}, "no preference loss called"),
        ({"loss": {"_component_": "dpo", "gamma": 1.0}}, "gamma"),
        ({"loss": {"_component_": "ipo", "beta": 0}}, "must be above 0"),
        ({"loss": {"_component_": "dpo", "label_smoothing": 0.7}}, "must be between 0 and 0.5"),
        ({"data": {"streaming": True}, "max_steps": 3}, "preferences are read whole"),
        ({"dataset_val": {"streaming": True}}, r"dataset_val.streaming must be false"),
        (
            {"dataset_val": {"_component_": "unpaired", "source": "x"}},
            r"is DPOLoss, and dataset_val holds judged answers",
        ),
        (
            {"data": {"_component_": "unpaired", "packed": True}, "loss": "kto"},
            "dataset.packed must be false: a judged answer",
        ),
        ({"collate_fn": "padded_collate_sft"}, "padded_collate_dpo"),
        ({**LORA, "ref_checkpointer": "FullModelHFCheckpointer"}, "has no effect beside adapters"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(values_in, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        PreferenceFinetuneParams(**values_in(tmp_path, **changes))


# What the recipe does otherwise than LoRA fine-tuning, and why.
DIFFERENT = {
    "__init__": "the type of its parameters",
    "_setup_model": "there may be no adapters, and there is a reference",
    "load_checkpoint": "the reference is filled, too",
    "_setup_monitor": "rewards are measured",
    "batch_loss": "another objective",
    "validate": "rewards are measured",
    "_write_model": "there may be no adapters",
}


def test_the_loop_is_the_other_recipes() -> None:
    ours, theirs = (
        {
            name: inspect.getsource(method)
            for name, method in vars(recipe).items()
            if inspect.isfunction(method)
        }
        for recipe in (PreferenceFinetuneRecipe, LoraFinetuneRecipe)
    )
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - DIFFERENT.keys():
        assert ours[name] == theirs[name], "\n".join(
            difflib.unified_diff(ours[name].splitlines(), theirs[name].splitlines(), lineterm="")
        )
    for name in DIFFERENT:
        assert ours[name] != theirs[name], f"{name} no longer differs"
