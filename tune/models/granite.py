"""Granite 3: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout
from tune.modules import DecoderConfig, Family


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    arguments = {**sizes, **read_rope(fields, sizes), **read_granite(fields)}
    arguments["mlp_bias"] = fields.flag("mlp_bias", False)
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def read_granite(fields: ConfigFields) -> dict[str, Any]:
    """Return what Granite 3 and 4 have by design: multipliers everywhere."""
    fields.expect("hidden_act", "silu")
    return {
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
        "attn_scale": fields.number("attention_multiplier", 1.0),
        "embed_scale": fields.number("embedding_multiplier", 1.0),
        "residual_scale": fields.number("residual_multiplier", 1.0),
        "logit_divisor": fields.number("logits_scaling", 1.0),
    }


def write_granite(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields that Granite 3 and 4 have in common."""
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "attention_multiplier": config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale,
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": config.logit_divisor,
    }


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_granite(config), "mlp_bias": config.mlp_bias}


GRANITE = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    hf=hf_layout(),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# ibm-granite/granite-3.0-2b-instruct to granite-3.3-8b-instruct, config.json
_2B = DecoderConfig(
    vocab_size=49_155,
    num_layers=40,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=2048,
    head_dim=64,
    intermediate_dim=8192,
    max_seq_len=4096,
    tie_word_embeddings=True,
    attn_scale=0.015625,
    embed_scale=12.0,
    residual_scale=0.22,
    logit_divisor=8.0,
)
_8B = replace(
    _2B, embed_dim=4096, head_dim=128, intermediate_dim=12_800, attn_scale=0.0078125, logit_divisor=16.0
)
_LONG_2B = replace(_2B, max_seq_len=131_072, rope_base=5_000_000.0)
_LONG_8B = replace(_8B, max_seq_len=131_072, rope_base=10_000_000.0)

granite_3_0_2b = ModelBuilder(GRANITE, _2B)
granite_3_0_8b = ModelBuilder(GRANITE, _8B)
granite_3_1_2b = ModelBuilder(GRANITE, _LONG_2B)
granite_3_1_8b = ModelBuilder(GRANITE, _LONG_8B)
granite_3_2_2b = ModelBuilder(GRANITE, _LONG_2B)
granite_3_2_8b = ModelBuilder(GRANITE, _LONG_8B)
# 3.3's instruct versions have four entries more, for thinking.
granite_3_3_2b = ModelBuilder(GRANITE, replace(_LONG_2B, vocab_size=49_159))
granite_3_3_8b = ModelBuilder(GRANITE, replace(_LONG_8B, vocab_size=49_159))

granite_tokenizer = tokenizer_at
