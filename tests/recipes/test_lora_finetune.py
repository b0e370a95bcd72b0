"""The LoRA recipe: what it trains, saves and resumes, and that its loop is the full recipe's."""

from __future__ import annotations

import difflib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tune.models
from tune.checkpoints import read_base_quantization, save_model
from tune.config import ParamsError
from tune.errors import CheckpointError
from tune.models.llama2 import llama2
from tune.recipes.full_finetune import FullFinetuneRecipe
from tune.recipes.generate import recipe_main as generate
from tune.recipes.lora_finetune import LoraFinetuneRecipe, recipe_main
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams
from tune.tokenizers import SentencePieceTokenizer
from tune.training import list_saved_steps
from tune.training.saving.fingerprint import check_fingerprint, describe_component
from tune.training.saving.run_state import read_run

LORA_BUILDER = {"_component_": "lora_llama2_7b", "lora_attn_modules": ["q_proj"]}
WITHOUT_FLAT = dict.fromkeys(
    ("lora_rank", "lora_alpha", "lora_dropout", "lora_attn_modules", "apply_lora_to_mlp")
)
TOKENS = torch.randint(3, 500, (2, 23), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> Path:
    """A random model whose parts all have sizes of their own, with its tokenizer."""
    torch.manual_seed(7)
    model = llama2(600, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    directory = tmp_path_factory.mktemp("base")
    save_model(model, directory, tokenizer=SentencePieceTokenizer(spm_file))
    return directory


@pytest.fixture
def make_lora(run_values: dict[str, Any], base_dir: Path):
    """Return the params of a short run with some of them changed."""
    values = {name: value for name, value in run_values.items() if name != "train_from_scratch"}
    values |= {
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": str(base_dir),
        "lora_rank": 3,
        "lora_alpha": 12.0,
        "lora_dropout": 0.2,
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "save_every_n_steps": 1,
    }
    return lambda **changes: LoraFinetuneParams(**{**values, **changes})


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def need_package_of(changes: dict[str, Any]) -> None:
    if "bitsandbytes" in str(changes):
        pytest.importorskip("bitsandbytes")


def logits_of(reference: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference.eval()(TOKENS).logits
    return logits


# Matrices of every size in 8 bits, and not from 4096 numbers on.
EIGHT_BIT = {"_component_": "bitsandbytes.optim.AdamW8bit", "lr": 0.01, "min_8bit_size": 16}
IN_BACKWARD = {"optimizer_in_bwd": True, "gradient_accumulation_steps": 1}
RESUMED: dict[str, dict[str, Any]] = {
    "lora": {},
    "qdora": {"use_dora": True, "quantize_base": True},
    "in backward": {**IN_BACKWARD, "enable_activation_checkpointing": True, "max_steps_per_epoch": 3},
    "eight bits": {"optimizer": EIGHT_BIT},
    "paged in backward": {
        **IN_BACKWARD,
        "max_steps_per_epoch": 3,
        "optimizer": {**EIGHT_BIT, "_component_": "bitsandbytes.optim.PagedAdamW8bit"},
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "apply_lora_to_output": True},
    "qlora": {"quantize_base": True},
    "checkpointed": {"enable_activation_checkpointing": True, "optimizer_in_bwd": True},
    "bf16": {"dtype": "bf16"},
    "eight bits": {"optimizer": EIGHT_BIT},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_and_other_tools_load_what_it_saves(
    make_lora, base_dir: Path, tmp_path: Path, name: str
) -> None:
    changes = VARIANTS[name]
    need_package_of(changes)
    if changes.get("optimizer_in_bwd"):
        changes = {**changes, "gradient_accumulation_steps": 1}
    assert recipe_main(make_lora(**changes)) == 0
    rows = rows_of(tmp_path / "out")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    step = tmp_path / "out" / "latest"
    adapter = load_file(step / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in adapter.values())
    assert read_base_quantization(step) == ("nf4" if name == "qlora" else "")
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    before = logits_of(base)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(step / "model", dtype=torch.float32))
    adapted = logits_of(PeftModel.from_pretrained(base, step / "adapter"))
    assert (adapted - before).abs().max() > 0.1
    if (
        name != "qlora"
    ):  # whose adapter was trained beside the 4-bit base, and is merged into what that stands for
        # bf16 weights are rounded once more when they are merged.
        torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=0.15 if name == "bf16" else 2e-4)
    with torch.no_grad():
        ours = tune.models.from_checkpoint(step)(TOKENS)
    torch.testing.assert_close(ours, merged, rtol=1e-4, atol=2e-4)


def test_only_the_adapter_is_saved_when_asked(
    make_lora, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_main(make_lora(save_adapter_weights_only=True, save_every_n_steps=None, log_level="INFO"))
    adapter = tmp_path / "out" / "latest" / "adapter"
    assert f"tune run generate {tmp_path / 'out'} prompt=" in capsys.readouterr().err
    asked = {"prompt": "the river", "max_new_tokens": 9, "device": "cpu", "log_level": "ERROR"}
    both = {"model_checkpoint": str(base_dir), "adapter_checkpoint": str(adapter)}
    answers = []
    for settings in ({"model_checkpoint": str(tmp_path / "out")}, {"model_checkpoint": str(adapter)}, both):
        assert generate(GenerateParams(**settings, **asked)) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]  # the adapter knows its base
    step = tmp_path / "out" / "latest"
    assert not (step / "model").exists()
    base_bytes = (base_dir / "model.safetensors").stat().st_size
    adapter_bytes = (step / "adapter" / "adapter_model.safetensors").stat().st_size
    state_bytes = sum(path.stat().st_size for path in (step / "state").rglob("*") if path.is_file())
    num_adapter = sum(t.numel() for t in load_file(step / "adapter" / "adapter_model.safetensors").values())
    assert adapter_bytes < 4 * num_adapter + 8_000 < base_bytes
    # Two moments per trained number; what is noted of each tensor takes more here, but does not grow with the base.
    num_tensors = len(load_file(step / "adapter" / "adapter_model.safetensors"))
    assert state_bytes < 2 * 4 * num_adapter + 3 * num_tensors * 2_048 + 30_000


def test_generation_from_the_adapter_is_that_of_the_merged_model(
    make_lora, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_main(make_lora())
    step = tmp_path / "out" / "latest"
    answers = []
    for settings in (
        {"model_checkpoint": str(step)},
        {"model_checkpoint": str(base_dir), "adapter_checkpoint": str(step)},
        {"model_checkpoint": str(base_dir), "adapter_checkpoint": str(step / "adapter")},
        {"model_checkpoint": str(base_dir)},
    ):
        capsys.readouterr()
        params = GenerateParams(
            **settings,
            prompt="the river",
            max_new_tokens=20,
            ignore_eos=True,
            device="cpu",
            log_level="ERROR",
        )
        assert generate(params) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] != answers[3]


@pytest.mark.parametrize(
    ("name", "only"),
    # What is resumed is the adapter: that the merged model is saved beside it, or is not, is one matter.
    [("lora", True), *((name, False) for name in RESUMED)],
)
def test_resumed_it_is_the_same_run(make_lora, tmp_path: Path, name: str, only: bool) -> None:
    need_package_of(RESUMED[name])
    changes = {**RESUMED[name], "save_adapter_weights_only": only}
    whole = tmp_path / "whole"
    recipe_main(make_lora(output_dir=str(whole), **changes))
    steps = [saved.step for saved in list_saved_steps(whole)]
    middle = steps[len(steps) // 2]
    part = tmp_path / "part"
    part.mkdir()
    shutil.copytree(whole / f"step_{middle:06d}", part / f"step_{middle:06d}")
    shutil.copy(whole / "metrics.jsonl", part)
    recipe_main(make_lora(output_dir=str(part), resume_from_checkpoint=True, **changes))
    for name in ("adapter/adapter_model.safetensors", *(() if only else ("model/model.safetensors",))):
        assert (whole / "latest" / name).read_bytes() == (part / "latest" / name).read_bytes()
    assert read_run(whole / "latest" / "state") == read_run(part / "latest" / "state")
    assert [row["loss"] for row in rows_of(whole)] == [row["loss"] for row in rows_of(part)]


def test_recomputing_and_stepping_in_backward_change_nothing(make_lora, tmp_path: Path) -> None:
    """With dropout, which a recomputed block must draw again as it was."""
    adapters = []
    for changes in (
        {},
        {"enable_activation_checkpointing": True},
        {"optimizer_in_bwd": True},
        {"enable_activation_checkpointing": True, "optimizer_in_bwd": True},
    ):
        output_dir = tmp_path / str(len(adapters))
        recipe_main(make_lora(gradient_accumulation_steps=1, epochs=1, output_dir=str(output_dir), **changes))
        adapters.append((output_dir / "latest" / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[1:] == adapters[:1] * 3


def test_a_run_resumes_beside_the_same_base_only(make_lora, base_dir: Path, tmp_path: Path) -> None:
    recipe_main(make_lora(epochs=1))
    other = tmp_path / "other"
    model = tune.models.from_checkpoint(base_dir)
    with torch.no_grad():
        model.norm.scale.mul_(1.5)
    save_model(model, other, tokenizer=tune.tokenizers.from_checkpoint(base_dir))
    for changes, named in (
        ({"model_checkpoint": str(other)}, "base: was"),
        ({"lora_rank": 5}, "rank 3 in the file, 5 in the"),
    ):
        with pytest.raises(CheckpointError, match=named):
            recipe_main(make_lora(resume_from_checkpoint=True, epochs=2, **changes))


def test_the_arguments_of_the_model_must_be_as_they_were(make_lora, tmp_path: Path) -> None:
    """A dropout or a 4-bit base is in no size of the model, and no value of the adapter."""
    described = LoraFinetuneRecipe(make_lora(epochs=1))
    described.setup()
    first = described.state.fingerprint
    described.cleanup()
    changed = {**first, "builder": first["builder"] + " lora_dropout"}
    with pytest.raises(CheckpointError, match=r"builder: was tune\.models\.auto"):
        check_fingerprint(first, changed, "step")
    assert describe_component(make_lora(**WITHOUT_FLAT, model=LORA_BUILDER).model) != describe_component(
        make_lora(**WITHOUT_FLAT, model={**LORA_BUILDER, "lora_dropout": 0.1}).model
    )


def test_an_adapter_can_be_gone_on_from(make_lora, tmp_path: Path) -> None:
    recipe_main(make_lora(epochs=1))
    first = tmp_path / "out" / "latest" / "adapter"
    settings = {
        "lora_rank": None,
        "lora_alpha": None,
        "lora_attn_modules": None,
        "apply_lora_to_mlp": None,
        "adapter_checkpoint": str(first),
        "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.0},
        "output_dir": str(tmp_path / "second"),
    }
    recipe_main(make_lora(**settings))
    # With a learning rate of zero it stays what it was, settings included.
    second = tmp_path / "second" / "latest" / "adapter"
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for folder in (first, second):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (3, 12.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_checkpoint": None}, "model_checkpoint"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": 10**20}, "lora_rank"),
        ({"lora_alpha": 0.0}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_attn_modules": ["q_proj", "w1"]}, "w1"),
        ({"lora_attn_modules": ["q_proj", "q_proj"]}, "names a matrix twice"),
        ({"lora_attn_modules": [], "apply_lora_to_mlp": False}, "nothing to train"),
        ({"model": LORA_BUILDER}, "set model.lora_rank"),
        ({"adapter_checkpoint": "some/adapter"}, "is said by the adapter"),
        ({"train_from_scratch": True}, "train_from_scratch"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_start(
    make_lora, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises((ParamsError, TypeError), match=named):
        make_lora(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": LORA_BUILDER}, "lora_finetune"),
        ({"checkpointer": {"checkpoint_dir": "x", "adapter_checkpoint": "y"}}, "trains every weight"),
    ],
)
def test_full_fine_tuning_takes_no_adapters(
    run_values: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    values = {name: value for name, value in run_values.items() if name != "train_from_scratch"}
    if "checkpointer" in changes:
        changes["checkpointer"]["_component_"] = "tune.training.FullModelCheckpointer"
    else:
        changes = {**changes, "model_checkpoint": "x"}
    with pytest.raises(ParamsError, match=named):
        FullFinetuneParams(**{**values, **changes})


# What the two recipes do differently, and why.
DIFFERENT = {
    "__init__": "the type of its parameters",
    "_setup_data": "the tokenizer is always the base's",
    "_setup_model": "the base is frozen, and adapters are put beside it",
    "load_checkpoint": "the base is always the checkpoint's; what has been learnt since is in the adapters",
    "_setup_monitor": "the base, and the builder's arguments, must stay as they are",
    "_write_model": "the adapter is saved, and the merged model beside it if wanted",
}


def test_the_recipes_are_one_text() -> None:
    """What happens in a step, in resuming and in saving is the same in both recipes, to the letter."""
    texts = [
        {
            name: inspect.getsource(method)
            for name, method in vars(recipe).items()
            if inspect.isfunction(method)
        }
        for recipe in (FullFinetuneRecipe, LoraFinetuneRecipe)
    ]
    full, lora = texts
    assert full.keys() == lora.keys()
    for name in full.keys() - DIFFERENT.keys():
        assert full[name] == lora[name], "\n".join(
            difflib.unified_diff(full[name].splitlines(), lora[name].splitlines(), lineterm="")
        )
    for name in DIFFERENT:
        assert full[name] != lora[name], f"{name} no longer differs"
