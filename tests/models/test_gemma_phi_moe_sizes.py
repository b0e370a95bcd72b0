"""Builders by size against what the published checkpoints say of themselves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from published_configs import COUNTS, PUBLISHED

import tune.models
from tune.models.loading import read_model_config
from tune.modules import TransformerDecoder

PACKAGES = ("gemma", "gemma2", "gemma3", "phi3", "phi4", "olmo2", "mixtral", "qwen3_moe")
BUILDERS: dict[str, Callable[[], TransformerDecoder]] = {
    name: getattr(module, name)
    for package in PACKAGES
    for module in [importlib.import_module(f"tune.models.{package}")]
    for name in module.__all__
    if name in PUBLISHED
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
    for name in set(BUILDERS) - {
        "qwen3_30b_a3b",
        "qwen3_235b_a22b",
    }:  # whose thousands of experts take seconds
        with torch.device("meta"):
            assert BUILDERS[name](attn_dropout=0.25).config.attn_dropout == 0.25, name


def test_sizes_go_by_their_short_names() -> None:
    with torch.device("meta"):
        assert tune.models.get_model("gemma2_2b").config.num_layers == 26
