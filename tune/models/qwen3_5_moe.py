"""Qwen3.5 and its successors of the same build with experts: sizes, builders, names in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.layouts import STACKED_EXPERTS, hf_layout
from tune.models.mixtral import ROUTER_TRAINING
from tune.models.outer import part_of
from tune.models.qwen2 import qwen2_tokenizer
from tune.models.qwen3_5 import (
    DELTA_NAMES,
    MTP,
    OUTER_FIELDS,
    delta_constants,
    delta_layers,
    read_hybrid,
    write_hybrid,
)
from tune.modules import DecoderConfig, Family, GatedDeltaConfig, MoEConfig, OuterModel

# What a configuration leaves out means this.  # transformers, Qwen3_5MoeTextConfig
_DEFAULT_SIZES = {
    "vocab_size": 248_320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    # There is no other feed-forward: its width stands for the shared expert's.
    given = {name: value for name, value in content.items() if value is not None}
    shared = given.get("shared_expert_intermediate_size", 512)
    sizes = {**_DEFAULT_SIZES, "intermediate_size": shared, **given}

    def read_experts(fields: ConfigFields) -> dict[str, Any]:
        fields.ignore(ROUTER_TRAINING)
        moe = MoEConfig(
            num_experts=fields.integer("num_experts", 256),
            experts_per_token=fields.integer("num_experts_per_tok", 8),
            intermediate_dim=fields.integer("moe_intermediate_size", 512),
            shared_intermediate_dim=fields.integer("shared_expert_intermediate_size", 512),
        )
        fields.expect("norm_topk_prob", True)
        return {"moe": moe, "intermediate_dim": max(moe.shared_intermediate_dim, 1)}

    return read_hybrid(sizes, read_experts)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = write_hybrid(config)
    del content["intermediate_size"]
    if config.moe is not None:
        content |= {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.experts_per_token,
            "moe_intermediate_size": config.moe.intermediate_dim,
            "shared_expert_intermediate_size": config.moe.shared_intermediate_dim,
        }
    return content


_FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
MOE_NAMES = {
    **DELTA_NAMES,
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.shared_gate.weight": "mlp.shared_expert_gate.weight",
    **{
        f"mlp.shared.{ours}.weight": f"mlp.shared_expert.{theirs}.weight"
        for ours, theirs in _FEED_FORWARD.items()
    },
}
EXPERTS_ONE_BY_ONE = {
    f"mlp.experts.{{}}.{ours}.weight": f"mlp.experts.{{}}.{theirs}.weight"
    for ours, theirs in _FEED_FORWARD.items()
}

QWEN3_5_MOE = part_of(
    Family(
        name="qwen3_5_moe_text",
        architectures=("Qwen3_5MoeForCausalLM",),
        hf=replace(hf_layout({**MOE_NAMES, **STACKED_EXPERTS}), carried=MTP),
        hf_variants=(replace(hf_layout({**MOE_NAMES, **EXPERTS_ONE_BY_ONE}), carried=MTP),),
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
    ),
    OuterModel(
        architecture="Qwen3_5MoeForConditionalGeneration",
        model_type="qwen3_5_moe",
        carried=("model.visual.*",),
        fields=OUTER_FIELDS,
    ),
)

# Qwen/Qwen3.5-35B-A3B, config.json; its text model has 34,660,610,688 numbers.
_35B = DecoderConfig(
    vocab_size=248_320,
    num_layers=40,
    num_heads=16,
    num_kv_heads=2,
    embed_dim=2048,
    head_dim=256,
    intermediate_dim=512,
    max_seq_len=262_144,
    norm_eps=1e-6,
    rope_base=10_000_000.0,
    rotary_dim=64,
    delta=GatedDeltaConfig(delta_layers(40), 16, 32, 128, 128),
    moe=MoEConfig(256, 8, 512, shared_intermediate_dim=512),
    **delta_constants(),
)

qwen3_5_35b_a3b = ModelBuilder(QWEN3_5_MOE, _35B)
qwen3_6_35b_a3b = qwen3_5_35b_a3b

lora_qwen3_5_35b_a3b = LoRABuilder(qwen3_5_35b_a3b)
qlora_qwen3_5_35b_a3b = LoRABuilder(qwen3_5_35b_a3b, quantize_base=True)

qwen3_5_moe_tokenizer = qwen2_tokenizer
