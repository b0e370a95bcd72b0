"""Qwen3.5 beyond the table: layers that guess further tokens, what its configurations may say, 4 bits, long answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from larger_models import random_larger
from published_qwens import PUBLISHED
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import save_model
from tune.errors import CheckpointError, ConfigError
from tune.generation import generate
from tune.models.conversion import convert_checkpoint
from tune.modules.linear import Linear
from tune.modules.peft import FrozenLinear, LoRAConfig, LoRALinear, apply_lora


@pytest.fixture(scope="module")
def text_model() -> PreTrainedModel:
    torch.manual_seed(4)
    config = CASES["qwen3.5"]()
    config.max_position_embeddings = 300
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_with_guesses(model: PreTrainedModel, directory: Path) -> dict[str, torch.Tensor]:
    """Save a model with the tensors of layers that guess further tokens, as published ones have them."""
    model.save_pretrained(directory)
    guesses = {
        "mtp.fc.weight": torch.randn(48, 96).bfloat16(),
        "mtp.layers.0.self_attn.q_proj.weight": torch.randn(192, 48),
        "mtp.norm.weight": torch.randn(48).half(),
    }
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, **guesses}, directory / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((directory / "config.json").read_text())
    content.get("text_config", content).update(mtp_num_hidden_layers=1, mamba_ssm_dtype="float32")
    (directory / "config.json").write_text(json.dumps(content))
    return guesses


@pytest.mark.parametrize("is_part", [False, True], ids=["text", "with pictures"])
def test_layers_that_guess_further_are_carried_along(
    text_model: PreTrainedModel, tmp_path: Path, is_part: bool
) -> None:
    reference = random_larger("qwen3.5") if is_part else text_model
    guesses = save_with_guesses(reference, tmp_path / "base")
    model = tune.models.from_checkpoint(tmp_path / "base")
    with torch.no_grad():
        model.layers[0].attn.a_log.mul_(0.5)  # as if trained
    save_model(model, tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "converted", dtype="bf16")
    for folder in ("saved", "converted"):
        held = load_file(tmp_path / folder / "model.safetensors")
        for name, tensor in guesses.items():
            assert torch.equal(held[name], tensor), name
            assert held[name].dtype == tensor.dtype
        before, after = (
            json.loads((tmp_path / place / "config.json").read_text()) for place in ("base", folder)
        )
        text = after.get("text_config", after)
        assert (text["mtp_num_hidden_layers"], text["mamba_ssm_dtype"]) == (1, "float32")
        assert after.keys() >= before.keys()
    again = type(reference).from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    tokens = torch.randint(0, 57, (2, 23))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=tokens).logits, model(tokens), rtol=1e-5, atol=5e-5)


def test_200_tokens_are_those_of_the_reference(text_model: PreTrainedModel, tmp_path: Path) -> None:
    text_model.save_pretrained(tmp_path)
    model = tune.models.from_checkpoint(tmp_path)
    prompt = torch.randint(0, 61, (1, 70), generator=torch.Generator().manual_seed(2))
    text_model.generation_config.eos_token_id = None
    theirs = text_model.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, 70:]
    assert generate(model, prompt[0].tolist(), max_new_tokens=200) == theirs.tolist()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attn_output_gate": False}, "`attn_output_gate` is false"),
        ({"output_gate_type": "sigmoid"}, '`output_gate_type` is "sigmoid"'),
        ({"mlp_only_layers": [1]}, r"`mlp_only_layers` is \[1\]"),
        ({"hidden_act": "gelu"}, "`hidden_act` is"),
        ({"layer_types": ["linear_attention"]}, "`layer_types` is .* a list of 32 entries"),
        ({"layer_types": None, "full_attention_interval": 0}, "`full_attention_interval` is 0"),
        ({"linear_num_value_heads": 24}, "num_value_heads is 24, not a multiple of num_key_heads 16"),
        ({"linear_conv_kernel_dim": 0}, "conv_width is 0; it must be at least 1"),
        ({"linear_key_head_dim": "wide"}, "`linear_key_head_dim` is .* a whole number"),
        ({"linear_decay": 3}, "`linear_decay` is 3"),
        ({"rope_parameters": {"rope_theta": 1e7, "rope_twist": 2}}, "`rope_twist` is 2"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(PUBLISHED["qwen3_5_9b"]))
    content["text_config"].update(changes)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        tune.models.auto(str(tmp_path))


@pytest.mark.parametrize("is_part", [False, True])
def test_what_a_configuration_leaves_out_is_as_in_the_reference(tmp_path: Path, is_part: bool) -> None:
    text = {"model_type": "qwen3_5_text", "num_hidden_layers": 6, "hidden_size": 64, "vocab_size": 99}
    whole = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": text,
    }
    (tmp_path / "config.json").write_text(json.dumps(whole if is_part else text))
    with torch.device("meta"):
        config = tune.models.auto(str(tmp_path)).config
    assert config.delta is not None
    assert config.delta.layers == (0, 1, 2, 4, 5)
    assert (config.delta.num_key_heads, config.delta.num_value_heads) == (16, 32)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (16, 4, 256)
    assert (config.rotary_channels, config.intermediate_dim, config.max_seq_len) == (64, 12_288, 32_768)


def test_gates_that_decide_stay_out_of_4_bits(text_model: PreTrainedModel, tmp_path: Path) -> None:
    text_model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 61, (2, 23))
    found = []
    for modules in (("q_proj",), ("in_proj_a", "out_proj")):
        model = tune.models.from_checkpoint(tmp_path)
        with torch.no_grad():
            plain = model(tokens)
        apply_lora(model, LoRAConfig(rank=2, attn_modules=modules, quantize_base=True))
        attn = model.layers[0].attn
        assert isinstance(attn.in_proj_qkv, FrozenLinear)
        assert attn.in_proj_qkv.nf4 is not None
        assert type(attn.in_proj_b) is Linear
        assert isinstance(attn.in_proj_a, LoRALinear) == ("in_proj_a" in modules)
        assert getattr(attn.in_proj_a, "nf4", None) is None
        with torch.no_grad():
            found.append(model(tokens))
    assert torch.equal(*found)  # adapters begin with what the frozen matrix does
    assert 0.01 < (found[0] - plain).std() / plain.std() < 1  # so small a model is rounded coarsely


def test_adapters_of_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    model = tune.models.llama2.llama2(31, 2, 3, 12, 20)
    with pytest.raises(
        ConfigError, match=r"names in_proj_z, and no layer of this model has it: it has q_proj"
    ):
        apply_lora(model, LoRAConfig(attn_modules=("q_proj", "in_proj_z")))
