"""What the LoRA recipe's parameters hold where nothing is said, beside a builder or an adapter that says it."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import pytest

from tune.config import dump_params, fields_of, fixed_on_resume, resolve
from tune.errors import CheckpointError
from tune.modules.peft import AttnModule, LoRAConfig, choose_lora
from tune.recipes.params.lora_finetune import LoraFinetuneParams
from tune.training.saving.fingerprint import check_fingerprint

RUN: dict[str, Any] = {"model_checkpoint": "base", "output_dir": "out", "dataset": "alpaca", "lr": 1e-4}


def test_adapters_are_by_default_as_the_help_says() -> None:
    settings = LoraFinetuneParams(**RUN).lora_settings()
    infos = fields_of(LoraFinetuneParams)
    assert settings == {name: infos[name].default for name in settings}
    assert choose_lora(settings) == LoRAConfig()
    # null, which runs of earlier versions saved, means the same
    assert LoraFinetuneParams(**RUN, **dict.fromkeys(settings)).lora_settings() == settings


def test_no_default_hides_behind_null() -> None:
    helps = {name: info.help for name, info in fields_of(LoraFinetuneParams).items()}
    derived = [name for name, text in helps.items() if "null means" in text]
    # what another field holds, or this machine
    assert derived == ["data_cache_dir", "batch_size_val", "embedding_lr", "param_dtype", "best_by"]


def test_an_adapter_says_what_has_its_default_here() -> None:
    beside = LoraFinetuneParams(**RUN, adapter_checkpoint="ad", lora_dropout=0.5, lora_rank=None)
    assert beside.lora_settings() == {"lora_dropout": 0.5}


BUILDER = """\
model:
  _component_: lora_llama2_7b
  lora_attn_modules: [q_proj]
  lora_rank: 64
"""
FILE = "model_checkpoint: base\noutput_dir: out\ndataset: alpaca\nlr: 1e-4\n"


@pytest.mark.parametrize(
    "setting",
    [
        "lora_rank=8",
        "lora_rank=16",
        "lora_alpha=16",
        "lora_dropout=0",
        "use_dora=false",
        "quantize_base=false",
    ],
)
@pytest.mark.parametrize("place", ["file", "line"])
def test_what_is_set_beside_a_builder_is_refused(setting: str, place: str) -> None:
    name = setting.partition("=")[0]
    line = [setting] if place == "line" else []
    text = FILE + BUILDER + ("" if line else setting.replace("=", ": ") + "\n")
    (error,) = resolve(LoraFinetuneParams, text=text, overrides=line).errors
    assert (error.path, error.code) == (name, "inconsistent")
    assert f"set model.{name}" in error.message


@pytest.mark.parametrize("setting", ["lora_rank=8", "lora_alpha=16", "apply_lora_to_mlp=false"])
def test_what_is_set_beside_an_adapter_is_refused(setting: str) -> None:
    text = FILE + "adapter_checkpoint: ad\n"
    (error,) = resolve(LoraFinetuneParams, text=text, overrides=[setting]).errors
    assert (error.path, error.code) == (setting.partition("=")[0], "inconsistent")


def test_a_dropout_of_0_counts_beside_an_adapter() -> None:
    text = FILE + "adapter_checkpoint: ad\nlora_dropout: 0\n"
    params = resolve(LoraFinetuneParams, text=text).params
    assert params is not None
    assert params.lora_settings() == {"lora_dropout": 0.0}
    again = resolve(LoraFinetuneParams, text=dump_params(params)).params
    assert again is not None
    assert again.lora_settings()["lora_dropout"] == 0.0


@pytest.mark.parametrize("extra", [BUILDER, "adapter_checkpoint: ad\n", ""])
def test_the_written_config_reads_back(extra: str) -> None:
    params = resolve(LoraFinetuneParams, text=FILE + extra).params
    assert params is not None
    written = dump_params(params)
    again = resolve(LoraFinetuneParams, text=written)
    assert [str(item) for item in again.errors] == []
    assert again.params == params
    assert ("\nlora_rank: 8" in written) == (not extra)
    assert ("\n# lora_rank: as " in written) == bool(extra)


def test_a_run_that_saved_null_for_a_default_resumes() -> None:
    params = LoraFinetuneParams(**RUN)
    current = {name: str(value) for name, value in fixed_on_resume(params).items()}
    saved = {**current, **dict.fromkeys(params.lora_settings(), "None")}
    assert check_fingerprint(saved, current, "step") == []
    assert check_fingerprint(current, saved, "step") == []
    for name in params.lora_settings():
        with pytest.raises(CheckpointError, match=f"{name}: was {re.escape(current[name])}, is other"):
            check_fingerprint(saved, {**current, name: "other"}, "step")


def test_the_matrices_that_may_be_named_are_those_of_the_library() -> None:
    hint = get_type_hints(LoraFinetuneParams)["lora_attn_modules"]
    (names,) = (get_args(kind) for kind in get_args(hint) if kind is not type(None))
    assert get_args(names[0]) == get_args(AttnModule)
