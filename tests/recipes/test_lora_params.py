"""What the LoRA recipe's parameters hold where nothing is said, beside a builder or an adapter that says it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from recipes.params.lora_finetune import LoraFinetuneParams
from tune.config import dump_params, fields_of, fixed_on_resume, resolve
from tune.errors import CheckpointError
from tune.modules.peft import LoRAConfig, choose_lora
from tune.training.saving.fingerprint import check_fingerprint

RUN: dict[str, Any] = {"model_checkpoint": "base", "output_dir": "out", "dataset": "alpaca"}


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
    assert derived == ["batch_size_val", "param_dtype"]  # what another field holds


def test_an_adapter_says_what_has_its_default_here() -> None:
    beside = LoraFinetuneParams(**RUN, adapter_checkpoint="ad", lora_dropout=0.5, lora_rank=None)
    assert beside.lora_settings() == {"lora_dropout": 0.5}


def test_a_builder_says_what_has_its_default_here() -> None:
    builder = {"_component_": "lora_llama2_7b", "lora_attn_modules": ["q_proj"], "lora_rank": 64}
    written = dump_params(LoraFinetuneParams(**RUN, model=builder))
    assert "\nlora_rank: 8" in written
    assert resolve(LoraFinetuneParams, text=written).ok
    refused = resolve(LoraFinetuneParams, text=written, overrides=["lora_rank=16"]).errors
    assert [(item.path, item.code) for item in refused] == [("lora_rank", "inconsistent")]


def test_a_run_that_saved_null_for_a_default_resumes() -> None:
    params = LoraFinetuneParams(**RUN)
    current = {name: str(value) for name, value in fixed_on_resume(params).items()}
    saved = {**current, **dict.fromkeys(params.lora_settings(), "None")}
    assert check_fingerprint(saved, current, "step") == []
    assert check_fingerprint(current, saved, "step") == []
    for name in params.lora_settings():
        with pytest.raises(CheckpointError, match=f"{name}: was {re.escape(current[name])}, is other"):
            check_fingerprint(saved, {**current, name: "other"}, "step")
