"""gpt-oss: sizes, builders and tokenizer; how its checkpoints name their weights and sizes.

Published ones keep their experts in MXFP4, which is read as bf16 (`tune.checkpoints.mxfp4`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.hf_config import (
    finish,
    layer_range,
    read_rope,
    read_sizes,
    write_rope,
    write_scaling,
    write_sizes,
)
from tune.models.layouts import STACKED_EXPERTS, hf_layout
from tune.models.mixtral import ROUTER_TRAINING
from tune.models.qwen2 import LAYER_KINDS
from tune.modules import (
    ClampedSwiGLU,
    DecoderConfig,
    DynamicScaling,
    Family,
    Llama3Scaling,
    MoEConfig,
    YarnScaling,
)

_BASE = 150_000.0
# What holds where nothing is said of rotary positions.  # transformers, GptOssConfig
_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    # An empty `rope_parameters` is plain positions, an empty `rope_scaling` says nothing.  # transformers, GptOssConfig
    if content.get("rope_parameters") is None and content.get("rope_scaling") in (None, {}):
        content = {**content, "rope_parameters": _DEFAULT_ROPE}
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1e-5, head_dim=64, num_kv_heads=8)
    num_layers = sizes["num_layers"]
    kinds = fields.choices("layer_types", num_layers, *LAYER_KINDS)
    if kinds is None:
        kinds = tuple(LAYER_KINDS[layer % 2 == 0] for layer in layer_range(num_layers))
    num_experts = fields.integer("num_local_experts", fields.integer("num_experts", 128))
    chosen = fields.integer("num_experts_per_tok", 4)
    arguments = {
        **sizes,
        **read_rope(fields, sizes, base=_BASE),
        "attn_bias": "all" if fields.flag("attention_bias", True) else "none",
        "attn_sinks": True,
        "sliding_window": fields.optional_integer("sliding_window", 128),
        "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == LAYER_KINDS[True]),
        "moe": MoEConfig(
            num_experts=num_experts,
            experts_per_token=chosen,
            intermediate_dim=sizes["intermediate_dim"],
            bias=True,
            clamped=ClampedSwiGLU(fields.number("swiglu_alpha", 1.702), fields.number("swiglu_limit", 7.0)),
        ),
    }
    fields.expect("hidden_act", "silu")
    # Other names for the same.
    fields.expect("num_experts", num_experts)
    fields.expect("experts_per_token", chosen)
    if isinstance(scaling := arguments["rope_scaling"], YarnScaling | Llama3Scaling | DynamicScaling):
        fields.expect("initial_context_length", scaling.original_max_seq_len)
    fields.ignore(ROUTER_TRAINING)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    scaling = {"rope_type": "default"} if config.rope_scaling is None else write_scaling(config.rope_scaling)
    content = {
        **write_sizes(config),
        **write_rope(config),
        "rope_parameters": {"rope_theta": config.rope_base, **scaling},
        "layer_types": [LAYER_KINDS[layer in config.sliding_layers] for layer in range(config.num_layers)],
        "sliding_window": config.sliding_window,
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
    }
    if config.moe is not None:
        content |= {
            "num_local_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.experts_per_token,
        }
        if config.moe.clamped is not None:
            content |= {
                "swiglu_alpha": config.moe.clamped.alpha,
                "swiglu_limit": config.moe.clamped.limit,
            }
    return content


_LAYOUT = hf_layout(
    {
        "attn.sinks": "self_attn.sinks",
        "mlp.router.weight": "mlp.router.weight",
        "mlp.router.bias": "mlp.router.bias",
        **STACKED_EXPERTS,
        **{ours.replace(".weight", ".bias"): f"{theirs}_bias" for ours, theirs in STACKED_EXPERTS.items()},
    }
)

GPT_OSS = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    classifier="GptOssForSequenceClassification",
    hf=replace(
        _LAYOUT,
        rules=tuple(replace(rule, in_turns=".experts." in rule.theirs) for rule in _LAYOUT.rules),
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# openai/gpt-oss-20b and -120b, config.json; arXiv:2508.10925, table 1.
_20B = DecoderConfig(
    vocab_size=201_088,
    num_layers=24,
    num_heads=64,
    num_kv_heads=8,
    embed_dim=2880,
    head_dim=64,
    intermediate_dim=2880,
    max_seq_len=131_072,
    norm_eps=1e-5,
    rope_base=_BASE,
    rope_scaling=YarnScaling(32.0, 4096, truncate=False),
    attn_bias="all",
    attn_sinks=True,
    sliding_window=128,
    sliding_layers=tuple(range(0, 24, 2)),
    moe=MoEConfig(32, 4, 2880, bias=True, clamped=ClampedSwiGLU()),
)
_120B = replace(
    _20B,
    num_layers=36,
    sliding_layers=tuple(range(0, 36, 2)),
    moe=MoEConfig(128, 4, 2880, bias=True, clamped=ClampedSwiGLU()),
)

gpt_oss_20b = ModelBuilder(GPT_OSS, _20B)
gpt_oss_120b = ModelBuilder(GPT_OSS, _120B)

lora_gpt_oss_20b = LoRABuilder(gpt_oss_20b)
lora_gpt_oss_120b = LoRABuilder(gpt_oss_120b)
qlora_gpt_oss_20b = LoRABuilder(gpt_oss_20b, quantize_base=True)
qlora_gpt_oss_120b = LoRABuilder(gpt_oss_120b, quantize_base=True)

gpt_oss_tokenizer = tokenizer_at
