"""Seed-OSS: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout
from tune.modules import DecoderConfig, Family

# By `attention_bias` and `attention_out_bias`.
_BIASES = {(False, False): "none", (True, False): "qkv", (False, True): "out", (True, True): "all"}


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=524_288, norm_eps=1e-6, head_dim=128, num_kv_heads=8)
    arguments = {**sizes, **read_rope(fields, sizes), "mlp_bias": fields.flag("mlp_bias", False)}
    biases = fields.flag("attention_bias", True), fields.flag("attention_out_bias", False)
    arguments["attn_bias"] = _BIASES[biases]
    arguments["attn_dropout"] = fields.number("attention_dropout", 0.1)
    arguments["residual_dropout"] = fields.number("residual_dropout", 0.1)
    fields.expect("hidden_act", "silu")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias in ("qkv", "all"),
        "attention_out_bias": config.attn_bias in ("out", "all"),
        "mlp_bias": config.mlp_bias,
        "residual_dropout": config.residual_dropout,
    }


SEED_OSS = Family(
    name="seed_oss",
    architectures=("SeedOssForCausalLM",),
    classifier="SeedOssForSequenceClassification",
    hf=hf_layout(),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# ByteDance-Seed/Seed-OSS-36B-Base, config.json: the sizes as MindSpeed-LLM has them (examples/mcore/seed_oss),
# what is left as transformers' SeedOssConfig does.
_36B = DecoderConfig(
    vocab_size=155_136,
    num_layers=64,
    num_heads=80,
    num_kv_heads=8,
    embed_dim=5120,
    head_dim=128,
    intermediate_dim=27_648,
    max_seq_len=524_288,
    norm_eps=1e-6,
    rope_base=10_000_000.0,
    attn_bias="qkv",
    residual_dropout=0.1,
)

seed_oss_36b = ModelBuilder(SEED_OSS, _36B)

lora_seed_oss_36b = LoRABuilder(seed_oss_36b)
qlora_seed_oss_36b = LoRABuilder(seed_oss_36b, quantize_base=True)

seed_oss_tokenizer = tokenizer_at
