"""Gemma 4 beyond the table: adapters of all its matrices, tensors nobody reads, its configurations, long answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, stir
from peft import LoraConfig, PeftModel, get_peft_model
from published_gemmas import PUBLISHED
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma4Config, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, save_adapter, save_model
from tune.errors import CheckpointError
from tune.generation import generate
from tune.models.conversion import convert_checkpoint
from tune.modules import FullAttentionConfig, PerLayerInputConfig, TransformerDecoder
from tune.modules.new_rows import resize_vocabulary
from tune.modules.peft import adapted_modules

TOKENS = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


def reference_of(case: str, directory: Path) -> PreTrainedModel:
    torch.manual_seed(4)
    config = CASES[case]()
    config.max_position_embeddings = 300
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    stir(model)
    model.save_pretrained(directory)
    return model


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found = model.eval()(TOKENS)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.parametrize("case", ["gemma4", "gemma4-sharing", "gemma4-experts"])
def test_200_tokens_are_those_of_the_reference(case: str, tmp_path: Path) -> None:
    reference = reference_of(case, tmp_path)
    model = tune.models.from_checkpoint(tmp_path)
    prompt = torch.randint(0, 61, (1, 70), generator=torch.Generator().manual_seed(2))
    reference.generation_config.eos_token_id = None
    theirs = reference.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, 70:]
    assert generate(model, prompt[0].tolist(), max_new_tokens=200) == theirs.tolist()


ADAPTED: dict[str, dict[str, Any]] = {
    "gemma4-sharing": {"target_modules": "all-linear"},
    "gemma4-experts": {
        "target_modules": ["q_proj", "gate_proj", "down_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
}


@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_of_peft_are_read_and_written(case: str, tmp_path: Path) -> None:
    reference_of(case, tmp_path / "base")

    def base() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")

    theirs = get_peft_model(
        base(), LoraConfig(r=4, lora_alpha=9, task_type="CAUSAL_LM", **ADAPTED[case])
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tune.models.from_checkpoint(tmp_path / "base")
    load_adapter(ours, tmp_path / "theirs")
    expected = logits_of(theirs)
    torch.testing.assert_close(logits_of(ours), expected, **TOLERANCE)
    paths = set(adapted_modules(ours))
    if case == "gemma4-sharing":
        assert {
            "per_layer_input.projection",
            "layers.5.per_layer.gate",
            "layers.0.per_layer.projection",
        } <= paths
        assert "layers.5.attn.q_proj" in paths
        assert "layers.5.attn.k_proj" not in paths
    else:
        assert {"layers.1.mlp.w1", "layers.1.moe.experts.w1", "layers.1.moe.experts.w2"} <= paths
    save_adapter(ours, tmp_path / "ours", base=str(tmp_path / "base"))
    again = PeftModel.from_pretrained(base(), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again), expected, **TOLERANCE)
    save_model(ours, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    torch.testing.assert_close(logits_of(merged), expected, **TOLERANCE)


def test_keys_that_nobody_reads_are_carried_along(tmp_path: Path) -> None:
    """As published files have them, for layers that attend to the keys of others."""
    reference = reference_of("gemma4-sharing", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    idle = {
        f"model.layers.{layer}.self_attn.{name}.weight": torch.randn(20, 48).bfloat16()
        for layer in (3, 4, 5)
        for name in ("k_proj", "v_proj", "k_norm")
    }
    save_file({**tensors, **idle}, path, metadata={"format": "pt"})
    model = tune.models.from_checkpoint(tmp_path / "base")
    torch.testing.assert_close(logits_of(model), logits_of(reference), **TOLERANCE)
    save_model(model, tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "converted", dtype="bf16")
    for folder in ("saved", "converted"):
        held = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(held[name], tensor) for name, tensor in idle.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert torch.equal(logits_of(again), logits_of(reference))
    # Of a layer with keys of its own they would be read.
    save_file(
        {**tensors, "model.layers.2.self_attn.v_bias.weight": torch.zeros(3)}, path, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"unknown to the model \(1\):\n.*layers\.2\.self_attn\.v_bias"):
        tune.models.from_checkpoint(tmp_path / "base")


def test_new_tokens_grow_both_tables_for_the_reference(tmp_path: Path) -> None:
    reference_of("gemma4-sharing", tmp_path / "base")
    model = tune.models.from_checkpoint(tmp_path / "base")
    expected = logits_of(model)
    resize_vocabulary(model, 71)
    save_model(model, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert (again.config.vocab_size, again.config.vocab_size_per_layer_input) == (71, 71)
    torch.testing.assert_close(logits_of(again)[..., :61], expected, **TOLERANCE)
    with torch.device("meta"):
        grown = tune.models.auto(str(tmp_path / "base"))
    resize_vocabulary(grown, 71)
    from tune.checkpoints import load_into, open_weights

    load_into(grown, open_weights(tmp_path / "base"))
    assert torch.equal(logits_of(grown), logits_of(model))


def read(content: dict[str, Any], directory: Path) -> TransformerDecoder:
    (directory / "config.json").write_text(json.dumps(content))
    with torch.device("meta"):
        return tune.models.auto(str(directory))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_bidirectional_attention": "all"}, '`use_bidirectional_attention` is "all"'),
        ({"hidden_activation": "silu"}, '`hidden_activation` is "silu"'),
        ({"layer_types": ["full_attention"]}, "`layer_types` is .* a list of 35 entries"),
        ({"num_kv_shared_layers": 34}, "layer 4 shares the keys of an earlier layer without a window"),
        ({"vocab_size_per_layer_input": 128}, "vocab_size is 128, and there are 262144 tokens"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "`rope_theta` is missing"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "`rope_t.*` is"),
        ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0"),
        ({"global_partial_rotary_factor": 0.5}, "`global_partial_rotary_factor` is 0.5"),
        ({"per_layer_config": {"4": {"head_dim": 512}}}, "`per_layer_config` is not one and the same"),
        ({"per_layer_config": {str(layer): 5 for layer in range(4, 35, 5)}}, "`per_layer_config` is not one"),
        ({"per_layer_config": {"4": {}}, "num_hidden_layers": 0}, "`per_layer_config` is not one"),
        ({"enable_moe_block": True}, "`num_experts` is missing"),
        ({"global_head_dim": 511}, "full_attention.head_dim is 511; it must be even"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(PUBLISHED["gemma4_e2b"]))
    content["text_config"].update(changes)
    with pytest.raises(CheckpointError, match=says):
        read(content, tmp_path)


@pytest.mark.parametrize("kind", ["gemma4_text", "gemma4_unified_text"])
def test_what_a_configuration_leaves_out_is_as_in_the_reference(kind: str, tmp_path: Path) -> None:
    config = read({"model_type": kind, "num_hidden_layers": 8}, tmp_path).config
    is_unified = kind == "gemma4_unified_text"
    assert config.sliding_layers == (0, 1, 2, 3, 4, 6)  # and the last one has none
    assert config.full_attention == FullAttentionConfig(512, 4)
    assert config.per_layer_input == (None if is_unified else PerLayerInputConfig(262_144, 256))
    assert (config.head_dim, config.embed_dim, config.intermediate_dim) == (256, 2304, 9216)
    assert config.sliding_window == (1024 if is_unified else 512)
    assert config.max_seq_len == (262_144 if is_unified else 131_072)
    assert (config.moe, config.shared_kv, config.final_softcap) == (None, None, None)


def test_heads_are_read_as_old_and_new_files_have_them(tmp_path: Path) -> None:
    old = json.loads(json.dumps(PUBLISHED["gemma4_31b"]))
    new = json.loads(json.dumps(old))
    text = new["text_config"]
    del text["global_head_dim"], text["num_global_key_value_heads"]
    heads = {"head_dim": 512, "num_key_value_heads": 4}
    text["per_layer_config"] = {str(layer): heads for layer in range(5, 60, 6)}
    expected = read(old, tmp_path).config
    assert read(new, tmp_path).config == expected
    # As transformers writes them, with zeros in front.
    Gemma4Config(**old).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert list(saved["text_config"]["per_layer_config"])[:2] == ["05", "11"]
    assert read({"architectures": old["architectures"], **saved}, tmp_path).config == expected
