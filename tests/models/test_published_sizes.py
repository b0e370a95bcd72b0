"""Builders by size against what the published checkpoints say of themselves."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from published_configs import COUNTS as OTHER_COUNTS
from published_configs import PUBLISHED as OTHERS
from published_gemmas import COUNTS as GEMMA_COUNTS
from published_gemmas import PUBLISHED as GEMMAS
from published_gpt_oss import COUNTS as GPT_OSS_COUNTS
from published_gpt_oss import PUBLISHED as GPT_OSS
from published_lfm2 import COUNTS as LFM2_COUNTS
from published_lfm2 import PUBLISHED as LFM2
from published_llamas import COUNTS as LLAMA_COUNTS
from published_llamas import PUBLISHED as LLAMAS
from published_muse_glimmer import COUNTS as MUSE_GLIMMER_COUNTS
from published_muse_glimmer import PUBLISHED as MUSE_GLIMMER
from published_qwens import COUNTS as QWEN_COUNTS
from published_qwens import PUBLISHED as QWENS

import tune.models
from tune.config.component_check import list_components
from tune.config.instantiate import import_component
from tune.config.slots import MODEL
from tune.models.builders import ModelBuilder
from tune.models.loading import read_model_config
from tune.modules import TransformerDecoder

PUBLISHED = {**OTHERS, **GEMMAS, **LLAMAS, **QWENS, **GPT_OSS, **LFM2, **MUSE_GLIMMER}
COUNTS = {
    **OTHER_COUNTS,
    **GEMMA_COUNTS,
    **LLAMA_COUNTS,
    **QWEN_COUNTS,
    **GPT_OSS_COUNTS,
    **LFM2_COUNTS,
    **MUSE_GLIMMER_COUNTS,
}
PATHS = list_components(MODEL)
BUILDERS: dict[str, ModelBuilder] = {
    name: builder
    for name, path in PATHS.items()
    if isinstance(builder := import_component(path), ModelBuilder)
}
# Further names for a size that has one: torchtune's, and those of later models.
SAME = {
    "qwen3_6_27b": "qwen3_5_27b",
    "qwen3_6_35b_a3b": "qwen3_5_35b_a3b",
    "qwen3_8_27b": "qwen3_5_27b",
    "qwen3_moe_30b_a3b_instruct": "qwen3_30b_a3b",
    "qwen3_moe_235b_a22b": "qwen3_235b_a22b",
}


@cache
def build(name: str) -> TransformerDecoder:
    with torch.device("meta"):
        return BUILDERS[name]()


def test_every_size_of_a_published_family_is_compared() -> None:
    files = {PATHS[name].rpartition(".")[0] for name in PUBLISHED}
    of_these = {name for name in BUILDERS if PATHS[name].rpartition(".")[0] in files}
    assert of_these - set(SAME) == set(PUBLISHED) == set(COUNTS)
    for name, other in SAME.items():
        assert BUILDERS[name] is BUILDERS[other]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_builder_is_what_the_published_config_describes(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    family, config = read_model_config(tmp_path)
    model = build(name)
    # Dropout is an argument of the builders, 0 unless it is given.
    assert model.config == replace(config, attn_dropout=0.0)
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
    # The smallest of each family comes last, and stays.
    smallest = {
        BUILDERS[name].family.name: name for name in sorted(COUNTS, key=COUNTS.__getitem__, reverse=True)
    }
    for name in smallest.values():
        with torch.device("meta"):
            assert BUILDERS[name](attn_dropout=0.25).config.attn_dropout == 0.25, name


def test_sizes_go_by_their_short_names() -> None:
    with torch.device("meta"):
        assert tune.models.get_model("gemma2_2b").config.num_layers == 26
