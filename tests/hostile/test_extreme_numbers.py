"""Numbers out of all proportion, in every field: judged by validate, in words, and never by a crash."""

from __future__ import annotations

import pytest
import torch

from tune.config import fields_of, resolve
from tune.generation.sampling import Sampling, token_probabilities
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams

TRAINING = "output_dir: out\nmodel_checkpoint: ck\ndataset: alpaca\nlr: 1e-4\n"
KINDS = {
    FullFinetuneParams: TRAINING,
    LoraFinetuneParams: TRAINING,
    GenerateParams: "model_checkpoint: ck\nprompt: hello\n",
}
EXTREMES = ["-1e300", "1e300", ".nan", ".inf", "-.inf", str(2**63), str(2**70), str(10**30), "-2"]
# They only ever make a gradient smaller: a greater one measures the norm and never clips.
UNBOUNDED = {"clip_grad_norm"}


@pytest.mark.parametrize("params", KINDS)
def test_no_field_takes_an_extreme_number(params: type) -> None:
    for name, info in fields_of(params).items():
        if info.spec.kind not in ("int", "float") or name in UNBOUNDED:
            continue
        text = "".join(f"{line}\n" for line in KINDS[params].splitlines() if not line.startswith(f"{name}:"))
        for value in EXTREMES:
            errors = resolve(params, text=text + f"{name}: {value}\n").errors
            assert {item.path for item in errors} == {name}, (name, value)
            assert {item.code for item in errors} <= {"out-of-range", "wrong-type"}, (name, value)


# A component, and arguments of it that are numbers.
ARGUMENTS = [
    ("optimizer", "AdamW", "lr weight_decay eps"),
    ("optimizer", "SGD", "momentum dampening"),
    ("optimizer", "ASGD", "lambd alpha t0"),
    ("lr_scheduler", "cosine", "num_warmup_steps num_cycles warmup_ratio min_lr_rate"),
    ("lr_scheduler", "linear", "num_warmup_steps warmup_ratio"),
    ("lr_scheduler", "ExponentialLR", "gamma"),
    ("loss", "CrossEntropyLoss", "label_smoothing"),
    ("dataset", "alpaca", "max_seq_len limit"),
    ("profiler", "setup_torch_profiler", "active_steps wait_steps"),
]


@pytest.mark.parametrize(("slot", "name", "arguments"), ARGUMENTS)
def test_no_argument_takes_an_extreme_number(slot: str, name: str, arguments: str) -> None:
    for argument in arguments.split():
        for value in EXTREMES:
            drop = ("lr", slot) if argument == "lr" else (slot,)
            text = "".join(
                f"{line}\n" for line in TRAINING.splitlines() if line.partition(":")[0] not in drop
            )
            text += f"{slot}: {{_component_: {name}, {argument}: {value}}}\n"
            (error,) = resolve(FullFinetuneParams, text=text).errors
            assert error.path == f"{slot}.{argument}", (argument, value)
            assert error.code in ("out-of-range", "wrong-type"), (argument, value)


@pytest.mark.parametrize(("name", "value"), [("lora_alpha", "1e-300"), ("clip_grad_norm", "1e-300")])
def test_what_rounds_to_nothing_trains_nothing(name: str, value: str) -> None:
    (error,) = resolve(LoraFinetuneParams, text=TRAINING + f"{name}: {value}\n").errors
    assert (error.path, error.code) == (name, "out-of-range")


def test_a_temperature_that_rounds_to_0_is_greedy() -> None:
    logits = torch.tensor([[1.0, -2.0, 5.0]])
    for temperature in (1e-300, 1e-40, 0.0):
        drawn = token_probabilities(logits, Sampling(temperature, top_k=2, top_p=1e-300))
        assert drawn.tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adafactor", "bitsandbytes.optim.AdamW8bit", None])
@pytest.mark.parametrize("params", [FullFinetuneParams, LoraFinetuneParams])
def test_a_learning_rate_has_to_be_given(params: type, optimizer: str | None) -> None:
    text = TRAINING.replace("lr: 1e-4\n", "") + (f"optimizer: {optimizer}\n" if optimizer else "")
    (error,) = resolve(params, text=text).errors
    assert (error.code, error.path, error.suggestion) == ("missing-required", "optimizer.lr", None)
    assert error.source.line == (4 if optimizer else 1)
    assert "as lr, for example" in error.message
    for given in ("lr: 2e-5\n", "learning_rate: 2e-5\n"):  # the second is its own error, and the only one
        assert len(resolve(params, text=text + given).errors) == (given != "lr: 2e-5\n")
