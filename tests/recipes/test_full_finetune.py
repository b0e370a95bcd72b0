"""The recipe's numbers: what a step computes, and what must not change it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch._dynamo.utils import counters

from tests.components import with_arguments
from tune.checkpoints import open_weights
from tune.data import shift_labels
from tune.errors import CheckpointError, ConfigError, TrainingError
from tune.models import from_checkpoint
from tune.recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune.recipes.interfaces import FTRecipeInterface
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint
from tune.training import list_saved_steps

SGD = {"_component_": "torch.optim.SGD", "lr": 0.3, "momentum": 0.9}


def weights_of(output_dir: Path | str, step: str = "latest") -> dict[str, torch.Tensor]:
    source = open_weights(Path(output_dir) / step / "model")
    return {name: source.read(name) for name in source}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=atol, msg=name)


def metrics_of(output_dir: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]


def train(params: Any) -> FullFinetuneRecipe:
    recipe = FullFinetuneRecipe(params)
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.cleanup()
    return recipe


def test_satisfies_the_interface(make_params) -> None:
    assert isinstance(FullFinetuneRecipe(make_params()), FTRecipeInterface)


def test_a_run_leaves_what_it_promises(make_params, tmp_path: Path) -> None:
    params = make_params(dataset_val=with_arguments(make_params().dataset, limit=5))
    assert recipe_main(params) == 0
    out = tmp_path / "out"
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"lr", "grad_norm", "tokens_per_second", "trained_tokens_per_second", "peak_memory_gib"} <= rows[
        0
    ].keys()
    assert 0 < rows[0]["fraction_of_limit"] < 1
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8]
    assert sorted(path.name for path in out.glob("step_*")) == ["step_000004", "step_000008"]
    assert (out / "log.txt").read_text().count("Step ") == 8

    # The saved model answers as it stands, and is the trained one.
    model = from_checkpoint(out / "latest" / "model", dtype=torch.float32)
    tokenizer = tokenizer_from_checkpoint(out / "latest" / "model")
    assert model(torch.tensor([tokenizer.encode("green walk")])).shape[-1] == 600
    assert yaml.safe_load((out / "config.yaml").read_text())["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize("seed", [3, None])
def test_the_written_config_reproduces_the_run(seed: int | None, make_params, tmp_path: Path) -> None:
    train(make_params(seed=seed))
    values = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert values["seed"] is not None  # the one the run drew
    train(make_params(**{**values, "output_dir": str(tmp_path / "again")}))
    assert_equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "again"))


def test_saved_steps_go_to_output_dir(make_params, tmp_path: Path) -> None:
    checkpointer = {
        "_component_": "tune.training.FullModelHFCheckpointer",
        "output_dir": str(tmp_path / "older"),
    }
    train(make_params(checkpointer=checkpointer, epochs=1))
    assert (tmp_path / "out" / "latest" / "manifest.json").is_file()
    assert not (tmp_path / "older").exists()


def test_one_step_equals_plain_torch(make_params, tmp_path: Path) -> None:
    """The whole data set in one step, against a loop over single examples without any of our loss code."""
    params = make_params(
        batch_size=4, gradient_accumulation_steps=6, epochs=1, optimizer={**SGD, "momentum": 0.0}
    )
    recipe = FullFinetuneRecipe(params)
    recipe.setup()
    model, weights = recipe.model, dict(recipe.model.named_parameters())
    total, num_targets = torch.zeros(()), 0
    for index in range(len(recipe.dataset)):
        example = recipe.dataset[index]
        logits = model(torch.tensor([example["tokens"]]))[0, :-1]
        labels = torch.tensor(example["labels"])[1:]
        total = total + nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        num_targets += int((labels != -100).sum())
    loss = total / num_targets
    gradients = torch.autograd.grad(loss, list(weights.values()))
    expected = {
        name: (weight - 0.3 * gradient).detach().clone()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    recipe.train()
    recipe.cleanup()
    assert recipe.state.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in recipe.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-6, msg=name)


def test_cutting_a_step_up_changes_nothing(make_params, tmp_path: Path) -> None:
    """Micro-batches hold unequal numbers of targets, and the last step of an epoch is a smaller one."""
    common = {"optimizer": SGD, "clip_grad_norm": 0.5}
    for batch_size, num_micro_batches in ((6, 1), (1, 6), (2, 3), (3, 2)):
        cut = {"batch_size": batch_size, "gradient_accumulation_steps": num_micro_batches, **common}
        out = tmp_path / str(batch_size)
        assert train(make_params(output_dir=str(out), **cut)).state.step == 8
        assert_equal(weights_of(tmp_path / "6"), weights_of(out), atol=3e-6)
        for ours, theirs in zip(metrics_of(out), metrics_of(tmp_path / "6"), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            assert ours["num_trained_tokens"] == theirs["num_trained_tokens"]


def test_packing_changes_nothing(make_params, tmp_path: Path) -> None:
    dataset = make_params().dataset
    one_step = {"batch_size": 30, "gradient_accumulation_steps": 1, "optimizer": SGD}
    train(make_params(output_dir=str(tmp_path / "plain"), **one_step))
    train(make_params(dataset=with_arguments(dataset, packed=True, max_seq_len=50), **one_step))
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "out"), atol=3e-6)


def test_logits_losses_and_hidden_losses_agree(make_params, tmp_path: Path) -> None:
    train(make_params(optimizer=SGD, epochs=1, output_dir=str(tmp_path / "linear")))
    train(make_params(optimizer=SGD, epochs=1, loss="CrossEntropyLoss"))
    assert_equal(weights_of(tmp_path / "linear"), weights_of(tmp_path / "out"), atol=3e-6)


def test_recomputation_changes_nothing(make_params, tmp_path: Path, monkeypatch) -> None:
    """Nor does it matter how many blocks: a run may go on where another number fits."""
    common: dict[str, Any] = {"model": with_arguments(make_params().model, attn_dropout=0.2), "epochs": 1}
    plans = []
    for choice in (False, True, "auto"):
        if choice == "auto":
            # A little less than it takes without, in the three quarters that are planned with.
            room = (0.9 * plans[0].peak + 0.1 * plans[1].peak) / 0.75
            (tmp_path / "meminfo").write_text(f"MemAvailable: {room / 1024:.0f} kB\n")
            monkeypatch.setattr("tune.training.memory.available._PROC", tmp_path)
        recipe = train(
            make_params(
                output_dir=str(tmp_path / str(choice)), enable_activation_checkpointing=choice, **common
            )
        )
        plans.append(recipe.memory_plan)
        assert_equal(weights_of(tmp_path / "False"), weights_of(tmp_path / str(choice)))
    assert 0 == plans[0].num_recomputed < plans[2].num_recomputed < plans[1].num_recomputed


BACKEND = {"backend": "aot_eager"}


@pytest.mark.parametrize("recompute", [False, True])
def test_compiling_changes_nothing(make_params, tmp_path: Path, monkeypatch, recompute: bool) -> None:
    """The graphs are captured for real; only the code generator, which takes a minute here, is left out."""
    compile_function = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **kwargs: compile_function(*args, **kwargs | {"backend": "aot_eager"})
    )
    common = {"epochs": 1, "enable_activation_checkpointing": recompute}
    train(make_params(output_dir=str(tmp_path / "plain"), **common))
    torch._dynamo.reset()
    counters.clear()
    train(make_params(compile=True, **common))
    assert counters["stats"]["unique_graphs"] > 0
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "out"), atol=2e-6)


def test_optimizer_in_backward_changes_nothing(make_params, tmp_path: Path) -> None:
    common = {
        "gradient_accumulation_steps": 1,
        "lr_scheduler": {"_component_": "cosine", "num_warmup_steps": 2},
    }
    train(make_params(output_dir=str(tmp_path / "plain"), **common))
    train(make_params(optimizer_in_bwd=True, **common))
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "out"))
    assert "grad_norm" not in metrics_of(tmp_path / "out")[0]


def test_looking_on_changes_nothing(make_params, tmp_path: Path) -> None:
    """Validation, samples, logging and saving draw no random numbers that training would miss."""
    model = with_arguments(make_params().model, attn_dropout=0.2)
    train(make_params(model=model, output_dir=str(tmp_path / "plain")))
    watched = make_params(
        model=model,
        dataset_val=with_arguments(make_params().dataset, limit=5),
        run_val_every_n_steps=2,
        generate_every_n_steps=3,
        sample_prompts=["green walk", "apple"],
        sample_max_new_tokens=4,
        save_every_n_steps=1,
        log_every_n_steps=4,
        metric_logger="jsonl",
    )
    train(watched)
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "out"))
    assert [row["step"] for row in metrics_of(tmp_path / "out")] == [2, 4, 6, 8]
    samples = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [0, 0, 3, 3, 6, 6, 8, 8]


def test_validation_is_the_loss_per_target_token(make_params, tmp_path: Path) -> None:
    val = with_arguments(make_params().dataset, limit=7)
    recipe = train(make_params(dataset_val=val, batch_size_val=2))
    total, num_targets = 0.0, 0
    for batch in recipe.loader_val:
        labels = shift_labels(batch["labels"])
        with torch.no_grad():
            logits = recipe.model(batch["tokens"])
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        num_targets += int((labels != -100).sum())
    assert metrics_of(tmp_path / "out")[-1]["val_loss"] == pytest.approx(total / num_targets, rel=1e-5)


def test_max_steps_and_the_schedule_count_optimizer_steps(make_params, tmp_path: Path) -> None:
    recipe = train(
        make_params(max_steps_per_epoch=3, lr_scheduler={"_component_": "linear", "num_warmup_steps": 0})
    )
    assert recipe.state.num_steps == 6
    rates = [row["lr"] for row in metrics_of(tmp_path / "out")]
    assert rates == pytest.approx([0.01 * (6 - step) / 6 for step in range(6)])


@pytest.mark.parametrize(("max_steps", "num_epochs"), [(2, 1), (4, 1), (6, 2), (11, 3)])
def test_max_steps_ends_the_run_whatever_epochs_says(
    make_params, tmp_path: Path, capfd, max_steps: int, num_epochs: int
) -> None:
    schedule = {"_component_": "linear", "num_warmup_steps": 0}
    params = make_params(
        max_steps=max_steps, epochs=2, lr_scheduler=schedule, save_every_epoch=False, log_level="INFO"
    )
    assert recipe_main(params) == 0  # four steps an epoch
    rows = metrics_of(tmp_path / "out")
    assert [row["step"] for row in rows] == list(range(1, max_steps + 1))
    rates = [0.01 * (max_steps - step) / max_steps for step in range(max_steps)]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    assert [saved.step for saved in list_saved_steps(tmp_path / "out")] == [max_steps]
    assert f"Finished {max_steps} of {max_steps} steps" in capfd.readouterr().err
    # It is complete: going on takes no step, and says so.
    assert recipe_main(replace(params, resume_from_checkpoint=True)) == 0
    assert len(metrics_of(tmp_path / "out")) == max_steps


def test_max_steps_counts_beside_max_steps_per_epoch(make_params, tmp_path: Path) -> None:
    recipe = train(make_params(max_steps=5, max_steps_per_epoch=3, epochs=1))
    assert (recipe.state.num_steps, recipe.state.num_epochs, recipe.state.epoch) == (5, 2, 1)
    assert len(metrics_of(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "saved"),
    [("bf16", None, torch.bfloat16), ("bf16", "fp32", torch.float32), ("fp16", None, torch.float32)],
)
def test_precisions_train(make_params, tmp_path: Path, dtype, param_dtype, saved) -> None:
    # fp16 is for GPUs, and slow on a CPU: a few steps show that it scales, unscales and learns.
    changes = {"device": None, "batch_size": 6, "epochs": 1} if dtype == "fp16" else {}
    train(make_params(dtype=dtype, param_dtype=param_dtype, **changes))
    losses = [row["loss"] for row in metrics_of(tmp_path / "out")]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {saved}


def test_several_datasets_are_one(make_params) -> None:
    dataset = make_params().dataset
    recipe = train(make_params(dataset=(dataset, with_arguments(dataset, limit=4)), epochs=1))
    assert len(recipe.dataset) == 27


def test_the_seed_decides_and_null_draws_one_that_is_saved(make_params, tmp_path: Path) -> None:
    seeds = []
    for number, seed in enumerate((3, 3, 4, None, None)):
        recipe = train(make_params(seed=seed, epochs=1, output_dir=str(tmp_path / str(number))))
        seeds.append(recipe.state.seed)
    weights = [weights_of(tmp_path / str(number))["model.norm.weight"] for number in range(5)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert seeds[:3] == [3, 3, 4]
    assert seeds[3] != seeds[4]


def test_pruning_keeps_the_best(make_params, tmp_path: Path) -> None:
    params = make_params(save_every_n_steps=1, keep_last_n_checkpoints=2, dataset_val=make_params().dataset)
    recipe = FullFinetuneRecipe(params)
    recipe.setup()
    losses = iter([5.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    validate = recipe.validate

    def validate_badly() -> dict[str, float]:
        validate()
        recipe.state.note_validation(val_loss := next(losses))
        return {"val_loss": val_loss}

    recipe.validate = validate_badly  # type: ignore[method-assign]
    object.__setattr__(params, "run_val_every_n_steps", 1)
    recipe.train()
    recipe.cleanup()
    kept = sorted(path.name for path in (tmp_path / "out").glob("step_*"))
    assert kept == ["step_000002", "step_000007", "step_000008"]
    assert (tmp_path / "out" / "best").resolve().name == "step_000002"


# ---- steps that must not be taken


class BreaksAt(nn.Module):
    """A loss that is NaN at one call, in value and gradient."""

    def __init__(self, loss_fn: nn.Module, call: int) -> None:
        super().__init__()
        self.loss_fn, self.call, self.num_calls = loss_fn, call, 0

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        factor = math.nan if self.num_calls == self.call else 1.0
        return self.loss_fn(logits, labels) * factor


def broken_run(params: Any) -> tuple[FullFinetuneRecipe, list[torch.Tensor]]:
    recipe = FullFinetuneRecipe(params)
    recipe.setup()
    recipe.loss_fn = BreaksAt(recipe.loss_fn, call=5)  # the first micro-batch of step 3
    return recipe, [weight.detach().clone() for weight in recipe.model.parameters()]


def test_a_bad_step_stops_the_run_before_the_weights_are_touched(make_params, tmp_path: Path) -> None:
    recipe, _ = broken_run(make_params(loss="CrossEntropyLoss", save_every_n_steps=2))
    with pytest.raises(TrainingError, match="step 3: the loss is nan"):
        recipe.train()
    recipe.cleanup()
    assert [row["step"] for row in metrics_of(tmp_path / "out")] == [1, 2]
    for name, tensor in weights_of(tmp_path / "out", "step_000002").items():
        assert torch.isfinite(tensor).all(), name
    assert all(torch.isfinite(weight).all() for weight in recipe.model.parameters())


def test_a_bad_step_can_be_left_out(make_params, tmp_path: Path) -> None:
    recipe, _ = broken_run(make_params(loss="CrossEntropyLoss", on_non_finite="skip"))
    recipe.train()
    recipe.cleanup()
    assert recipe.guard.num_skipped == 1
    rows = metrics_of(tmp_path / "out")
    assert rows[2]["loss"] == "nan"
    assert all(isinstance(row["loss"], float) for row in rows[3:])
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(tmp_path / "out").values())


def test_optimizer_in_backward_looks_at_the_loss_before_it_steps(make_params) -> None:
    params = make_params(loss="CrossEntropyLoss", optimizer_in_bwd=True, gradient_accumulation_steps=1)
    recipe, _ = broken_run(params)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        recipe.train()
    recipe.cleanup()
    assert all(torch.isfinite(weight).all() for weight in recipe.model.parameters())


def test_weights_that_have_gone_bad_replace_no_good_ones(make_params, tmp_path: Path) -> None:
    """In the backward pass a bad gradient is stepped with; the next loss tells, when the only good step is saved."""
    optimizer = {"_component_": "torch.optim.SGD", "lr": 0.1}
    params = make_params(optimizer=optimizer, optimizer_in_bwd=True, gradient_accumulation_steps=1)
    recipe = FullFinetuneRecipe(params)
    recipe.setup()
    weight = next(recipe.model.parameters())
    weight.register_hook(lambda grad: grad * (float("nan") if recipe.state.step == 9 else 1.0))
    with pytest.raises(TrainingError, match="step 10: the loss is nan"):
        recipe.train()
    recipe.cleanup()
    assert [saved.step for saved in list_saved_steps(tmp_path / "out")] == [8]


# ---- what is refused


def test_a_tokenizer_of_another_model_is_refused(make_params) -> None:
    params = make_params(model=with_arguments(make_params().model, vocab_size=591))
    with pytest.raises(ConfigError, match=r"\d+ different tokens, but the model knows only 591"):
        train(params)


def test_a_directory_with_another_runs_steps_is_refused(make_params, tmp_path: Path) -> None:
    train(make_params())
    before = weights_of(tmp_path / "out")
    with pytest.raises(CheckpointError, match="resume_from_checkpoint=true"):
        train(make_params(seed=4))
    assert_equal(before, weights_of(tmp_path / "out"))


def test_wrong_weights_are_refused(make_params, tmp_path: Path) -> None:
    train(make_params(epochs=1))
    wider = make_params(
        model=with_arguments(make_params().model, intermediate_dim=48),
        train_from_scratch=False,
        model_checkpoint=str(tmp_path / "out"),
        output_dir=str(tmp_path / "second"),
    )
    with pytest.raises(CheckpointError, match="do not fit"):
        train(wider)


def test_fine_tuning_starts_from_the_checkpoint(make_params, tmp_path: Path) -> None:
    train(make_params(epochs=1))
    start = {
        "train_from_scratch": False,
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": str(tmp_path / "out"),  # the model of its latest step
        "output_dir": str(tmp_path / "second"),
    }
    train(make_params(epochs=1, optimizer={**SGD, "lr": 0.0}, **start))
    assert_equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "second"))


def test_meta_weights_are_written_and_read(make_params, tmp_path: Path) -> None:
    train(make_params(checkpointer="FullModelMetaCheckpointer", epochs=1))
    meta = tmp_path / "out" / "latest" / "meta"
    assert {path.name for path in meta.iterdir()} >= {"consolidated.00.pth", "params.json"}
    again = make_params(
        train_from_scratch=False,
        checkpointer={"_component_": "FullModelMetaCheckpointer", "checkpoint_dir": str(meta)},
        output_dir=str(tmp_path / "second"),
        optimizer={**SGD, "lr": 0.0},
        epochs=1,
    )
    train(again)
    assert_equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "second"))
    wrong = make_params(
        train_from_scratch=False,
        checkpointer={
            "_component_": "FullModelMetaCheckpointer",
            "checkpoint_dir": str(meta),
            "model_type": "GEMMA",
        },
        output_dir=str(tmp_path / "third"),
    )
    with pytest.raises(CheckpointError, match="model_type is GEMMA, but the model is of the family llama"):
        train(wrong)
