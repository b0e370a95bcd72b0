"""Reward models: what is saved scores alike elsewhere; a step however it is cut, resumed, on two processes."""

from __future__ import annotations

import inspect
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.distributed.launching import launch
from tests.recipes.preference_runs import (
    NUM_PAIRS,
    assert_same_weights,
    rows_of,
)
from tune.checkpoints import load_adapter
from tune.config import ParamsError
from tune.datasets import preference_dataset
from tune.errors import CheckpointError, ConfigError, DataError, GenerationError
from tune.generation import generate_text
from tune.models import from_checkpoint
from tune.models.granite import granite_3_0_2b
from tune.modules.score import add_score
from tune.recipes.distill import DistillRecipe
from tune.recipes.full_finetune import recipe_main as full_main
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.reward_finetune import RewardFinetuneParams
from tune.recipes.reward_finetune import RewardFinetuneRecipe, recipe_main
from tune.tokenizers import from_checkpoint as tokenizer_from

LORA = {"lora_rank": 3, "apply_lora_to_mlp": True}
MEASURED = ("loss", "rewards_chosen", "rewards_rejected", "margin", "accuracy")
MANY_RUNS = Path(__file__).resolve().parents[1] / "distributed" / "many_runs.py"


@pytest.fixture(scope="module")
def margins_file(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = random.Random(2), tmp_path_factory.mktemp("margins") / "pairs.jsonl"
    rows = [json.loads(line) | {"margin": rng.uniform(-1, 2)} for line in pairs_file.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def values_in(base: Path, margins_file: Path) -> Callable[..., dict[str, Any]]:
    def values(output_dir: Path, **changes: Any) -> dict[str, Any]:
        dataset = {"_component_": "preference", "source": str(margins_file)}
        common = {
            "output_dir": str(output_dir),
            "model_checkpoint": str(base),
            "dataset": dataset | changes.pop("data", {}),
            "loss": {"_component_": "bradley_terry", "center_rewards_coefficient": 0.02},
            "batch_size": 4,
            "epochs": 2,
            "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.05},
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
        }
        return common | changes

    return values


@pytest.fixture(scope="module")
def run_in(values_in: Callable[..., dict[str, Any]]) -> Callable[..., list[dict[str, Any]]]:
    def run(output_dir: Path, **changes: Any) -> list[dict[str, Any]]:
        assert recipe_main(RewardFinetuneParams(**values_in(output_dir, **changes))) == 0
        return rows_of(output_dir)

    return run


@pytest.fixture(scope="module")
def runs(run_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all weights and one of adapters, each saved after every step."""
    folder = tmp_path_factory.mktemp("runs")
    adam = {"_component_": "AdamW", "lr": 0.01}
    for name, changes in (("full", {}), ("lora", LORA)):
        run_in(folder / name, optimizer=adam, save_every_n_steps=1, log_every_n_steps=3, **changes)
    return folder


def assert_same_rows(one: list[dict[str, Any]], other: list[dict[str, Any]], prefix: str = "") -> None:
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        for name in MEASURED:
            assert theirs[prefix + name] == pytest.approx(mine[prefix + name], rel=2e-5, abs=2e-5), name


def scores_of(model: Any, rows: list[list[int]], pad_id: int) -> torch.Tensor:
    """Return what transformers makes of rows of tokens, in one padded batch."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=mask).logits.squeeze(-1)


def texts(folder: Path, file: Path) -> tuple[list[list[int]], int]:
    """Return both conversations of each pair as tokens, and the token that pads."""
    tokenizer = tokenizer_from(folder)
    rows = []
    for item in preference_dataset(tokenizer, source=str(file)):
        end = item["input_pos"].index(0, 1)
        rows += [item["tokens"][:end], item["tokens"][end:]]
    return rows, tokenizer.pad_id


def test_what_is_saved_scores_alike_elsewhere(runs: Path, base: Path, margins_file: Path) -> None:
    for name in ("full", "lora"):
        saved = runs / name / "latest" / "model"
        ours = from_checkpoint(saved)
        theirs = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
        assert type(theirs).__name__ == "LlamaForSequenceClassification"
        assert theirs.config.num_labels == 1
        rows, pad_id = texts(saved, margins_file)
        with torch.no_grad():
            mine = torch.stack([ours(torch.tensor([row]))[0, -1, 0] for row in rows])
        assert mine.std() > 0.1
        torch.testing.assert_close(scores_of(theirs, rows, pad_id), mine, rtol=0, atol=2e-5)
    # the adapter, and its head, beside the language model that it began with
    adapter = runs / "lora" / "latest" / "adapter"
    with_peft = AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=1, dtype=torch.float32
    )
    with_peft.config.pad_token_id = pad_id
    torch.testing.assert_close(scores_of(with_peft, rows, pad_id), mine, rtol=0, atol=2e-5)
    again = from_checkpoint(base)
    add_score(again)
    load_adapter(again, adapter)
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([rows[0]]))[0, -1], mine[:1], rtol=0, atol=2e-5)


def test_what_the_docs_score(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "preference.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("out/tiny_reward", str(runs / "lora"))
    exec(compile(code, "preference.md", "exec"), {})
    assert [math.isfinite(float(line)) for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_a_reward_model_writes_nothing(runs: Path, base: Path, tmp_path: Path) -> None:
    saved = runs / "full" / "latest" / "model"
    with pytest.raises(GenerationError, match="reward model: it gives texts a score"):
        generate_text(from_checkpoint(saved), tokenizer_from(saved), "apple", max_new_tokens=2)
    values = {"model_checkpoint": str(saved), "output_dir": str(tmp_path), "lr": 1e-3, "log_level": "ERROR"}
    values |= {
        "dataset": {"_component_": "text_completion", "source": str(tmp_path / "x.txt")},
        "device": "cpu",
    }
    (tmp_path / "x.txt").write_text("apple river")
    with pytest.raises(CheckpointError, match="holds a reward model"):
        full_main(FullFinetuneParams(**values))
    with pytest.raises(CheckpointError, match="is a reward model's"):
        load_adapter(from_checkpoint(base), runs / "lora" / "latest" / "adapter")


def test_a_step_is_the_same_however_it_is_cut(run_in, tmp_path: Path) -> None:
    """Packed, too: all pairs are then in each step, for packs are shuffled as a whole."""
    for name, changes in (("full", {}), ("lora", LORA)):
        whole = run_in(tmp_path / f"{name}_6", batch_size=6, **changes)
        cut = run_in(tmp_path / f"{name}_2", batch_size=2, gradient_accumulation_steps=3, **changes)
        assert_same_rows(whole, cut)
        assert_same_weights(tmp_path / f"{name}_6", tmp_path / f"{name}_2", 3e-6)
    all_pairs = {"batch_size": NUM_PAIRS, "epochs": 3}
    apart = run_in(tmp_path / "apart", data={"max_seq_len": 24}, **all_pairs)
    packed = run_in(tmp_path / "packed", data={"max_seq_len": 24, "packed": True}, **all_pairs)
    assert_same_rows(apart, packed)
    assert abs(apart[-1]["loss"] - apart[0]["loss"]) > 1e-3
    assert_same_weights(tmp_path / "apart", tmp_path / "packed", 3e-6)


def test_in_bf16_and_in_4_bits(run_in, tmp_path: Path) -> None:
    for changes in ({"dtype": "bf16"}, {"dtype": "bf16", "quantize_base": True, **LORA}):
        (row,) = run_in(tmp_path / str(len(changes)), max_steps=1, **changes)
        assert math.isfinite(row["loss"])
        assert row["grad_norm"] > 0
        weights = load_file(tmp_path / str(len(changes)) / "latest" / "model" / "model.safetensors")
        assert weights["score.weight"].shape == (1, 24)


def test_resumed_it_is_the_same_run(run_in, runs: Path, tmp_path: Path) -> None:
    adam = {"_component_": "AdamW", "lr": 0.01}
    for name, changes in (("full", {}), ("lora", LORA)):
        part = shutil.copytree(runs / name, tmp_path / name, symlinks=True)
        for step in part.glob("step_*"):
            if int(step.name.split("_")[1]) > 4:
                shutil.rmtree(step)
        common = {"optimizer": adam, "save_every_n_steps": 1, "log_every_n_steps": 3, **changes}
        again = run_in(part, resume_from_checkpoint=True, **common)
        assert [[row[key] for key in MEASURED] for row in again] == [
            [row[key] for key in MEASURED] for row in rows_of(runs / name)
        ]
        assert_same_weights(runs / name, part, 0.0)


def test_two_processes_train_as_one(run_in, values_in, margins_file: Path, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "full": {"gradient_accumulation_steps": 2},
        "lora": LORA,
        "lora_sharded": {**LORA, "data_parallel_shard_dim": 2},
    }
    listed = []
    for name, changes in cases.items():
        changes = {"dataset_val": {"source": str(margins_file)}, **changes}
        one = {key: value for key, value in changes.items() if key != "data_parallel_shard_dim"}
        run_in(tmp_path / f"{name}_1", **one)
        values = values_in(tmp_path / f"{name}_2", **changes | {"batch_size": 2})
        listed.append({"recipe": "reward_finetune", "values": values})
    (tmp_path / "runs.json").write_text(json.dumps(listed))
    done = launch(2, MANY_RUNS, str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr
    for name in cases:
        one, two = rows_of(tmp_path / f"{name}_1"), rows_of(tmp_path / f"{name}_2")
        assert_same_rows(one, two)
        assert_same_rows(*([row for row in rows if "val_loss" in row] for rows in (one, two)), prefix="val_")
        assert_same_weights(tmp_path / f"{name}_1", tmp_path / f"{name}_2", 3e-6)


def test_it_learns_from_where_it_stands_and_keeps_the_best(
    run_in, runs: Path, margins_file: Path, tmp_path: Path
) -> None:
    """From a reward model of its own, whose score is kept; and texts are scored on the way."""
    saved = runs / "full" / "latest" / "model"
    rows = run_in(
        tmp_path / "out",
        model_checkpoint=str(saved),
        loss={"_component_": "bradley_terry"},
        data={"ignore_columns": ["margin"], "column_map": {"chosen": "chosen", "rejected": "rejected"}},
        dataset_val={},
        run_val_every_n_steps=1,
        save_every_n_steps=1,
        best_by="accuracy",
        batch_size=NUM_PAIRS,
        epochs=8,
        sample_prompts=["apple river"],
        generate_every_n_steps=4,
        **LORA,
    )
    before, (tokens, _) = from_checkpoint(saved), texts(saved, margins_file)
    with torch.no_grad():
        scores = torch.stack([before(torch.tensor([row]))[0, -1, 0] for row in tokens])
    assert rows[0]["rewards_chosen"] == pytest.approx(float(scores[::2].mean()), rel=1e-4)
    assert rows[0]["margin"] == pytest.approx(float((scores[::2] - scores[1::2]).mean()), abs=1e-5)
    score = {row["step"]: row["val_accuracy"] for row in rows}
    best = int((tmp_path / "out" / "best").resolve().name.split("_")[1])
    assert score[best] == max(score.values())
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 4, 8]
    assert all(math.isfinite(float(sample["answer"])) for sample in samples)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"_component_": "unpaired"}}, "scores are learnt from pairs: use preference"),
        ({"dataset_val": {"_component_": "unpaired", "source": "x"}}, "dataset_val is unpaired"),
        ({"loss": "dpo"}, "no reward loss called"),
        (
            {"loss": {"_component_": "bradley_terry", "center_rewards_coefficient": -1}},
            "center_rewards_coefficient",
        ),
        ({**LORA, "apply_lora_to_output": True}, "a score in place of an output matrix"),
        ({"checkpointer": "FullModelMetaCheckpointer"}, "has no place for a score"),
        ({"data": {"streaming": True}, "max_steps": 3}, "preferences are read whole"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(values_in, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        RewardFinetuneParams(**values_in(tmp_path, **changes))


def test_margins_are_numbers(base: Path, tmp_path: Path) -> None:
    file, pair = tmp_path / "pairs.jsonl", {"prompt": "apple", "chosen": "river", "rejected": "walk"}
    tokenizer = tokenizer_from(base)
    for margin in ("1", None, True, math.nan, 1e300):
        file.write_text(json.dumps(pair | {"margin": margin}) + "\n")
        with pytest.raises(DataError, match="expected the number by which the chosen answer is better"):
            preference_dataset(tokenizer, source=str(file))
    file.write_text("".join(json.dumps(pair | {"by": each}) + "\n" for each in (1, -0.37, 65537.5)))
    told = {"chosen": "chosen", "rejected": "rejected", "margin": "by"}
    dataset = preference_dataset(tokenizer, source=str(file), column_map=told)
    assert [item["margins"] for item in dataset] == [[1.0], [pytest.approx(-0.37, rel=1e-7)], [65537.5]]


def test_a_family_without_a_classifier_is_refused() -> None:
    with torch.device("meta"):
        model = granite_3_0_2b()
    with pytest.raises(ConfigError, match="no sequence classification for models of the family granite"):
        add_score(model)


def test_the_loop_is_the_other_recipes() -> None:
    names = (
        "setup",
        "_setup_data",
        "train",
        "train_step",
        "_forward",
        "save_checkpoint",
        "_write_model",
        "cleanup",
    )
    for name in names:
        ours, theirs = (
            inspect.getsource(getattr(cls, name)) for cls in (RewardFinetuneRecipe, DistillRecipe)
        )
        if name == "setup":  # the one line of the divergence
            theirs = theirs.replace("        self.kd_loss = instantiate(params.kd_component())\n", "")
        assert ours == theirs, name
