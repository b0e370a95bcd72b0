"""Qwen3-Next: size, builders and tokenizer; how its checkpoints name their weights and sizes.

Its layers are those of Qwen3.5 with experts. Files keep the matrices of layers with a state in two, head by head: the
rows of each head of keys stand together with those of its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.layouts import STACKED_EXPERTS, hf_layout
from tune.models.mixtral import ROUTER_TRAINING
from tune.models.qwen2 import qwen2_tokenizer
from tune.models.qwen3_5 import MTP, delta_constants, delta_layers, read_hybrid, write_hybrid
from tune.models.qwen3_5_moe import EXPERTS_ONE_BY_ONE, MOE_NAMES
from tune.models.qwen3_moe import dense_layers
from tune.modules import DecoderConfig, Family, GatedDeltaConfig, Layout, MoEConfig

# What a configuration leaves out means this.  # transformers, Qwen3NextConfig
_DEFAULT_SIZES = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    given = {name: value for name, value in content.items() if value is not None}

    def read_experts(fields: ConfigFields) -> dict[str, Any]:
        fields.ignore(ROUTER_TRAINING)
        fields.expect("use_sliding_window", False)
        moe = MoEConfig(
            num_experts=fields.integer("num_experts", 512),
            experts_per_token=fields.integer("num_experts_per_tok", 10),
            intermediate_dim=fields.integer("moe_intermediate_size", 512),
            normalize_weights=fields.flag("norm_topk_prob", True),
            dense_layers=dense_layers(fields, fields.integer("num_hidden_layers")),
            shared_intermediate_dim=fields.integer("shared_expert_intermediate_size", 512),
        )
        return {"moe": moe}

    return read_hybrid({**_DEFAULT_SIZES, **given}, read_experts, has_dense_layers=True)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = write_hybrid(config)
    if config.moe is not None:
        content |= {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.experts_per_token,
            "moe_intermediate_size": config.moe.intermediate_dim,
            "norm_topk_prob": config.moe.normalize_weights,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.moe.dense_layers),
            "shared_expert_intermediate_size": config.moe.shared_intermediate_dim,
        }
    return content


def _rows(config: DecoderConfig, *, is_wide: bool) -> list[Tensor]:
    """Return which rows of a matrix are the queries', keys', values' and gates', or the strengths' and the steps'.

    Args:
        config: of a model that has layers with a state.
        is_wide: of the matrix of the former.
    """
    delta = config.delta
    assert delta is not None, "only layers with a state have such matrices"
    values = delta.num_value_heads // delta.num_key_heads  # of a head of keys
    wide = values * delta.value_head_dim
    widths = [delta.key_head_dim, delta.key_head_dim, wide, wide] if is_wide else [values, values]
    heads = torch.arange(delta.num_key_heads * sum(widths)).view(delta.num_key_heads, -1)  # [n_k, rows]
    return [part.flatten() for part in torch.split(heads, widths, dim=1)]


def _layout(experts: Mapping[str, str]) -> Layout:
    fused = {
        "attn.in_proj_qkv.weight": (
            "linear_attn.in_proj_qkvz.weight",
            lambda config: torch.cat(_rows(config, is_wide=True)[:3]),
        ),
        "attn.in_proj_z.weight": (
            "linear_attn.in_proj_qkvz.weight",
            lambda config: _rows(config, is_wide=True)[3],
        ),
        "attn.in_proj_b.weight": (
            "linear_attn.in_proj_ba.weight",
            lambda config: _rows(config, is_wide=False)[0],
        ),
        "attn.in_proj_a.weight": (
            "linear_attn.in_proj_ba.weight",
            lambda config: _rows(config, is_wide=False)[1],
        ),
    }
    layout = hf_layout({**MOE_NAMES, **experts, **{ours: theirs for ours, (theirs, _) in fused.items()}})
    rules = tuple(
        replace(rule, rows=fused[name][1])
        if (name := rule.ours.removeprefix("layers.{}.")) in fused
        else rule
        for rule in layout.rules
    )
    return replace(layout, rules=rules, carried=MTP, adapted_weights=".mlp.shared_expert.")


QWEN3_NEXT = Family(
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    classifier="Qwen3NextForSequenceClassification",
    hf=_layout(EXPERTS_ONE_BY_ONE),  # as published, and as vLLM reads them
    hf_variants=(_layout(STACKED_EXPERTS),),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# Qwen/Qwen3-Next-80B-A3B-Instruct: transformers' Qwen3NextConfig, and of the file the positions and the rotary base.
_80B = DecoderConfig(
    vocab_size=151_936,
    num_layers=48,
    num_heads=16,
    num_kv_heads=2,
    embed_dim=2048,
    head_dim=256,
    intermediate_dim=5120,
    max_seq_len=262_144,
    norm_eps=1e-6,
    rope_base=10_000_000.0,
    rotary_dim=64,
    delta=GatedDeltaConfig(delta_layers(48), 16, 32, 128, 128),
    moe=MoEConfig(512, 10, 512, shared_intermediate_dim=512),
    **delta_constants(),
)

qwen3_next_80b_a3b = ModelBuilder(QWEN3_NEXT, _80B)

lora_qwen3_next_80b_a3b = LoRABuilder(qwen3_next_80b_a3b)
qlora_qwen3_next_80b_a3b = LoRABuilder(qwen3_next_80b_a3b, quantize_base=True)

qwen3_next_tokenizer = qwen2_tokenizer
