"""OLMo 2: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

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
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-5)
    arguments = {**sizes, **read_rope(fields, sizes), "norm_placement": "post", "qk_norm": "width"}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    fields.expect("hidden_act", "silu")
    for name in ("sliding_window", "layer_types", "clip_qkv"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        # transformers' own are those of another tokenizer.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


OLMO2 = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    classifier="Olmo2ForSequenceClassification",
    hf=hf_layout(
        {
            "sa_post_norm.scale": "post_attention_layernorm.weight",
            "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# arXiv:2501.00656, table 3, with the vocabulary of the published checkpoints, padded to a multiple of 128.
_7B = DecoderConfig(
    vocab_size=100_352,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=4096,
    norm_eps=1e-6,
    rope_base=500_000.0,
    qk_norm="width",
    norm_placement="post",
)
_1B = replace(_7B, num_layers=16, num_heads=16, num_kv_heads=16, embed_dim=2048, intermediate_dim=8192)
_13B = replace(_7B, num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824)
_32B = replace(_7B, num_layers=64, num_heads=40, num_kv_heads=8, embed_dim=5120, intermediate_dim=27_648)

olmo2_1b = ModelBuilder(OLMO2, _1B)
olmo2_7b = ModelBuilder(OLMO2, _7B)
olmo2_13b = ModelBuilder(OLMO2, _13B)
olmo2_32b = ModelBuilder(OLMO2, _32B)

olmo2_tokenizer = tokenizer_at
