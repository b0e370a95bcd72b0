"""LFM2 beyond the table: what its configurations may say, 4 bits, adapters of some layers alone, long answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from peft import LoraConfig, PeftModel, get_peft_model
from published_lfm2 import PUBLISHED
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, save_adapter
from tune.errors import CheckpointError, ConfigError
from tune.generation import generate
from tune.modules.peft import FrozenLinear, LoRAConfig, adapted_modules, apply_lora

TOKENS = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    config = CASES["lfm2"]()
    config.max_position_embeddings = 300
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("lfm2")
    model.save_pretrained(directory)
    return directory


def theirs(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        out = model.eval()(TOKENS)
    return out if isinstance(out, Tensor) else out.logits


def test_200_tokens_are_those_of_the_reference(base: Path) -> None:
    reference = theirs(base)
    reference.generation_config.eos_token_id = None
    prompt = torch.randint(0, 61, (1, 70), generator=torch.Generator().manual_seed(2))
    expected = reference.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, 70:]
    model = tune.models.from_checkpoint(base)
    assert generate(model, prompt[0].tolist(), max_new_tokens=200) == expected.tolist()


def test_adapters_of_either_kind_of_layer_keep_apart(base: Path, tmp_path: Path) -> None:
    """The files call one matrix of each kind `out_proj`."""
    model = tune.models.from_checkpoint(base)
    apply_lora(model, LoRAConfig(rank=3, attn_modules=("output_proj",)))
    assert set(adapted_modules(model)) == {"layers.1.attn.output_proj"}
    torch.nn.init.normal_(model.layers[1].attn.output_proj.lora_b.weight, std=0.3)
    save_adapter(model, tmp_path / "ours", base=str(base))
    again = PeftModel.from_pretrained(theirs(base), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=1e-5, atol=5e-5)

    made = get_peft_model(theirs(base), LoraConfig(r=4, target_modules=["out_proj", "in_proj", "w2"]))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    made.save_pretrained(tmp_path / "theirs")
    ours = tune.models.from_checkpoint(base)
    load_adapter(ours, tmp_path / "theirs")
    assert {path.rpartition(".")[2] for path in adapted_modules(ours)} == {
        "output_proj",
        "out_proj",
        "in_proj",
        "w2",
    }
    torch.testing.assert_close(logits_of(ours), logits_of(made), rtol=1e-5, atol=5e-5)


def test_4_bits_and_names_that_are_not_there(base: Path) -> None:
    model = tune.models.from_checkpoint(base)
    plain = logits_of(model)
    apply_lora(model, LoRAConfig(rank=2, attn_modules=("q_proj", "in_proj"), quantize_base=True))
    assert isinstance(model.layers[0].attn.out_proj, FrozenLinear)
    assert 0.01 < (logits_of(model) - plain).std() / plain.std() < 1  # so small a model is rounded coarsely
    with pytest.raises(ConfigError, match="names in_proj_qkv, and no layer of this model has it"):
        apply_lora(tune.models.from_checkpoint(base), LoRAConfig(attn_modules=("in_proj_qkv",)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conv_dim": 1024}, "`conv_dim` is 1024"),
        ({"use_pos_enc": False}, "`use_pos_enc` is false"),
        ({"conv_L_cache": 0}, "the convolution's width is 0"),
        ({"intermediate_size": 8192}, "`block_ff_dim` and `intermediate_size` say different things"),
        ({"layer_types": ["conv"] * 16}, "`layer_types` and `full_attn_idxs` say different things"),
        ({"layer_types": ["conv", "mamba"] * 8}, "`layer_types` is .*mamba"),
        ({"full_attn_idxs": "all"}, "`full_attn_idxs` is .* a list of whole numbers"),
        ({"block_multiple_of": 0}, "`block_multiple_of` is 0"),
        ({"conv_stride": 2}, "`conv_stride` is 2"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED["lfm2_1_2b"], **changes}))
    with pytest.raises(CheckpointError, match=says):
        tune.models.auto(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"full_attn_idxs": [1, 2]},
        {"block_multiple_of": 7, "block_ffn_dim_multiplier": 1.3},
        {"block_ff_dim": 94, "tie_embedding": False},
        {"block_auto_adjust_ff_dim": False, "intermediate_size": 77},
    ],
)
def test_sizes_are_those_of_the_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 48,
        "intermediate_size": 101,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "block_multiple_of": 16,
        "pad_token_id": None,
    }
    if "block_ff_dim" in changes:
        del sizes["intermediate_size"]
    content = {**sizes, **changes}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lfm2", **content}))
    with torch.device("meta"):
        ours = tune.models.auto(str(tmp_path))
        reference = AutoModelForCausalLM.from_config(Lfm2Config(**content))
    assert sum(parameter.numel() for parameter in ours.parameters()) == reference.num_parameters()
    shapes = [tuple(layer.feed_forward.w1.weight.shape) for layer in reference.model.layers]
    assert [tuple(layer.mlp.w1.weight.shape) for layer in ours.layers] == shapes
    kinds = [hasattr(layer, "conv") for layer in reference.model.layers]
    assert [layer.has_state for layer in ours.layers] == kinds
