"""A builder whose constants differ from the checkpoint's is refused; one that differs in nothing that counts is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tune.checkpoints import check_against_config, save_model
from tune.errors import CheckpointError
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder
from tune.training import FullModelCheckpointer

SIZES = {"vocab_size": 31, "num_layers": 2, "num_heads": 4, "embed_dim": 24, "intermediate_dim": 40}


def build(**changes: float) -> TransformerDecoder:
    return llama2(**{**SIZES, "max_seq_len": 16, "num_kv_heads": 2, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(), tmp_path)
    return tmp_path


def test_the_same_model_with_other_limits_passes(folder: Path) -> None:
    check_against_config(build(max_seq_len=640, attn_dropout=0.25), folder)


def test_every_constant_that_differs_is_named_before_loading(folder: Path) -> None:
    # As many values per head times heads: every tensor has the shape of the other model's.
    model = build(num_heads=2, num_kv_heads=1, rope_base=5e5, norm_eps=1e-6)
    before = model.output_weight.clone()
    with pytest.raises(CheckpointError) as caught:
        FullModelCheckpointer(str(folder)).load_into(model, folder, device=torch.device("cpu"))
    for text in (
        "num_heads is 2 in the model, 4 in the checkpoint",
        "num_kv_heads is 1",
        "head_dim is 12 in the model, 6",
        "rope_base is 500000.0 in the model, 10000.0 in the checkpoint",
        "norm_eps is 1e-06 in the model, 1e-05",
        "model: auto",
    ):
        assert text in str(caught.value)
    assert torch.equal(model.output_weight, before)


def test_another_family_is_named(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "architectures": ["MistralForCausalLM"]}))
    with pytest.raises(
        CheckpointError, match=r"describes a MistralForCausalLM, and .* built as LlamaForCausalLM"
    ):
        check_against_config(build(), folder)


def test_a_file_that_cannot_be_followed_is_refused(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "twist": 2}))
    with pytest.raises(CheckpointError, match=r"(?s)cannot be compared .*`twist` is 2"):
        check_against_config(build(rope_base=7.0), folder)
