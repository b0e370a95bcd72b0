"""Gemma 3 checkpoints that also see pictures: the text model is read from them, and saved as a text model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GEMMA, MIXED, SCALED, SIZES
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

import tune.models
from tune.checkpoints import save_model
from tune.errors import CheckpointError
from tune.models.gemma3 import say_pictures_are_left_out

# Prefixes of text model and head: as the hub has them, and as newer files do.
OLDER, NEWER = ("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")


def reference_of(**text: Any) -> PreTrainedModel:
    torch.manual_seed(8)
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **SIZES | GEMMA | {"num_hidden_layers": 5},
            layer_types=MIXED,
            sliding_window=7,
            rope_parameters=SCALED,
            **text,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=12, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        mm_tokens_per_image=4,
        image_token_index=60,
    )
    model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def rename(directory: Path, prefixes: tuple[str, str], *, with_head: bool = False) -> None:
    """Give the text model's tensors these prefixes, and pictures' the place that goes with them."""
    tensors = load_file(directory / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for trunk, head in (OLDER, NEWER):
            if name.startswith(trunk):
                name = prefixes[0] + name.removeprefix(trunk)
            elif name.startswith(head):
                name = prefixes[1] + name.removeprefix(head)
        if "vision_tower" in name or "multi_modal_projector" in name:
            name = ("model." if prefixes == NEWER else "") + name.removeprefix("model.")
        renamed[name] = tensor
    if with_head:
        renamed[prefixes[1] + "weight"] = renamed[prefixes[0] + "embed_tokens.weight"].clone()
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return reference_of()


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("prefixes", [OLDER, NEWER], ids=["older", "newer"])
def test_the_text_model_gives_the_logits_and_is_saved_alone(
    reference: PreTrainedModel, tmp_path: Path, prefixes: tuple[str, str], with_head: bool
) -> None:
    reference.save_pretrained(tmp_path / "whole")
    rename(tmp_path / "whole", prefixes, with_head=with_head)
    model = tune.models.from_checkpoint(tmp_path / "whole")
    tokens = torch.randint(0, 60, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(input_ids=tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=2e-5)
        save_model(model, tmp_path / "text")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager")
        assert type(again) is Gemma3ForCausalLM
        torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-5, atol=2e-5)
    assert not [name for name in load_file(tmp_path / "text" / "model.safetensors") if "vision" in name]


def test_leaving_pictures_out_is_said_once(
    reference: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="tune"):
        say_pictures_are_left_out.cache_clear()
        for _ in range(2):
            tune.models.auto(str(tmp_path))
    assert caplog.text.count("the text model is used") == 1


@pytest.mark.parametrize(
    ("outer", "inner", "said"),
    [
        ({"tie_word_embeddings": False}, {}, "`tie_word_embeddings` is false"),
        ({}, {"tie_word_embeddings": False}, r"`text_config\.tie_word_embeddings` is false"),
        ({"audio_config": {"x": 1}}, {}, "`audio_config`"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "quantised"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({}, {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is true"),
        ({"text_config": [1]}, {}, r"`text_config` is \[1\]; it must be an object"),
    ],
)
def test_what_is_not_understood_is_named(
    reference: PreTrainedModel, tmp_path: Path, outer: dict[str, Any], inner: dict[str, Any], said: str
) -> None:
    content = json.loads(reference.config.to_json_string(use_diff=False))
    content["architectures"] = ["Gemma3ForConditionalGeneration"]
    content["text_config"].update(inner)
    (tmp_path / "config.json").write_text(json.dumps({**content, **outer}))
    with pytest.raises(CheckpointError, match=said):
        tune.models.auto(str(tmp_path))


def test_a_missing_tensor_of_the_text_model_is_named(reference: PreTrainedModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    rename(tmp_path, OLDER)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["language_model.model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing.*\n +language_model\.model\.layers\.1\.self_attn\.q_norm"
    ):
        tune.models.from_checkpoint(tmp_path)
