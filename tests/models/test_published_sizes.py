"""Builders by size against what the published checkpoints say of themselves."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from published_configs import COUNTS as OTHER_COUNTS
from published_configs import PUBLISHED as OTHERS
from published_llamas import COUNTS as LLAMA_COUNTS
from published_llamas import PUBLISHED as LLAMAS

import tune.models
from tune.models.loading import read_model_config
from tune.models.lora import LoRABuilder
from tune.modules import TransformerDecoder

PUBLISHED = {**OTHERS, **LLAMAS}
COUNTS = {**OTHER_COUNTS, **LLAMA_COUNTS}
PACKAGES = (
    *("llama2", "llama3", "llama3_1", "llama3_2", "llama3_3", "code_llama2", "smollm2", "smollm3", "granite"),
    *("mistral", "qwen2", "qwen2_5", "qwen3"),
    *("gemma", "gemma2", "gemma3", "phi3", "phi4", "olmo2", "mixtral", "qwen3_moe"),
)
BUILDERS: dict[str, Callable[[], TransformerDecoder]] = {
    name: getattr(module, name)
    for package in PACKAGES
    for module in [importlib.import_module(f"tune.models.{package}")]
    for name in module.__all__
    # Those by argument need their sizes, and those with adapters are of the builders here.
    if not name.endswith("_tokenizer")
    and name.removeprefix("lora_") not in PACKAGES
    and not isinstance(getattr(module, name), LoRABuilder)
}


@cache
def build(name: str) -> TransformerDecoder:
    with torch.device("meta"):
        return BUILDERS[name]()


def test_every_size_has_a_builder() -> None:
    assert set(BUILDERS) == set(PUBLISHED) == set(COUNTS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_builder_is_what_the_published_config_describes(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    family, config = read_model_config(tmp_path)
    model = build(name)
    assert model.config == config
    assert model.family is family


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    model = build(name)
    assert model.config.num_parameters() == COUNTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_as_the_same(name: str) -> None:
    model = build(name)
    assert model.family is not None
    content = json.loads(json.dumps(model.family.write_hf_config(model.config)))
    assert model.family.read_hf_config(content) == model.config


def test_dropout_is_an_argument_of_every_size() -> None:
    for name, builder in BUILDERS.items():
        assert "attn_dropout" in inspect.signature(builder).parameters, name
    # The smallest of each package comes last, and stays.
    smallest = {
        BUILDERS[name].__module__: name for name in sorted(COUNTS, key=COUNTS.__getitem__, reverse=True)
    }
    for name in smallest.values():
        with torch.device("meta"):
            assert BUILDERS[name](attn_dropout=0.25).config.attn_dropout == 0.25, name


def test_sizes_go_by_their_short_names() -> None:
    with torch.device("meta"):
        assert tune.models.get_model("gemma2_2b").config.num_layers == 26
