"""Qwen3.5 and its successors of the same build (3.6, 3.8), the dense text models: how their checkpoints name things.

Three of four layers keep a state instead of attending. The published checkpoints also see pictures, and guess more
than one token ahead: their text model is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import (
    finish,
    layer_range,
    read_rope,
    read_sizes,
    rotary_share,
    write_scaling,
    write_sizes,
)
from tune.models.layouts import hf_layout
from tune.models.outer import part_of
from tune.modules import DecoderConfig, Family, GatedDeltaConfig, OuterModel

# What a configuration leaves out means this.  # transformers, Qwen3_5TextConfig
_DEFAULT_SIZES = {
    "vocab_size": 248_320,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
}
_ROTARY_SHARE = 0.25
# Of pictures' positions, which those of texts do not need, and of the guess at tokens further on.
_OF_PICTURES = ("mrope_section", "mrope_interleaved")
_HARMLESS = ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "unsloth_fixed_mtp")
# The layers that guess at tokens further on: saved along as they are.
_MTP = ("mtp.*",)
# Of the larger models' config.json.
OUTER_FIELDS = (
    *("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    *("language_model_only", "processor_class"),
)
_KINDS = ("linear_attention", "full_attention")


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields({**_DEFAULT_SIZES, **_with_share(content)}, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, head_dim=256, num_kv_heads=4)
    arguments = {
        **sizes,
        **read_rope(fields, sizes, partial=True),
        **delta_constants(),
        "delta": read_delta(fields, sizes["num_layers"]),
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
    }
    fields.expect("hidden_act", "silu")
    fields.expect("attn_output_gate", True)
    fields.expect("mlp_only_layers", [])
    fields.expect("output_gate_type", "swish", "silu")
    fields.ignore(_HARMLESS)
    return finish(fields, arguments)


def _with_share(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content without what positions of texts do not need, and with the share of channels that turn."""
    changed = dict(content)
    share = content.get("partial_rotary_factor")
    changed["partial_rotary_factor"] = _ROTARY_SHARE if share is None else share
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := content.get(name), dict):
            changed[name] = {key: value for key, value in rope.items() if key not in _OF_PICTURES}
    return changed


def delta_constants() -> dict[str, Any]:
    """Return what the attention and the norms of every such model have."""
    return {"qk_norm": "head", "attn_gate": True, "norm_offset": 1.0}


def read_delta(fields: ConfigFields, num_layers: int) -> GatedDeltaConfig | None:
    """Return the layers that keep a state, and their sizes; None: there is no such layer."""
    interval = fields.integer("full_attention_interval", 4)
    if interval < 1:
        fields.problem(f"`full_attention_interval` is {interval}; it must be at least 1")
    kinds = fields.choices("layer_types", min(max(num_layers, 0), 10_000), *_KINDS)
    if kinds is None:
        kinds = tuple(_KINDS[(layer + 1) % max(interval, 1) == 0] for layer in layer_range(num_layers))
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == _KINDS[0])
    delta = GatedDeltaConfig(
        layers=layers,
        num_key_heads=fields.integer("linear_num_key_heads", 16),
        num_value_heads=fields.integer("linear_num_value_heads", 32),
        key_head_dim=fields.integer("linear_key_head_dim", 128),
        value_head_dim=fields.integer("linear_value_head_dim", 128),
        conv_width=fields.integer("linear_conv_kernel_dim", 4),
    )
    return delta if layers else None


def write_delta(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of config.json that speak of layers with a state."""
    content: dict[str, Any] = {
        "layer_types": [_KINDS[layer not in config.delta_layers] for layer in range(config.num_layers)]
    }
    if delta := config.delta:
        content |= {
            "linear_num_key_heads": delta.num_key_heads,
            "linear_num_value_heads": delta.num_value_heads,
            "linear_key_head_dim": delta.key_head_dim,
            "linear_value_head_dim": delta.value_head_dim,
            "linear_conv_kernel_dim": delta.conv_width,
        }
    return content


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {
        **write_sizes(config),
        **write_delta(config),
        "rope_parameters": {
            "rope_theta": config.rope_base,
            "partial_rotary_factor": rotary_share(config),
            **({"rope_type": "default"} if scaling is None else write_scaling(scaling)),
        },
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
    }


_DELTA = {
    **{f"attn.{name}.weight": f"linear_attn.{name}.weight" for name in ("in_proj_qkv", "in_proj_z")},
    **{
        f"attn.{name}.weight": f"linear_attn.{name}.weight" for name in ("in_proj_b", "in_proj_a", "out_proj")
    },
    "attn.conv_weight": "linear_attn.conv1d.weight",
    "attn.a_log": "linear_attn.A_log",
    "attn.dt_bias": "linear_attn.dt_bias",
    "attn.norm.scale": "linear_attn.norm.weight",
}
HF_WITH_STATES = replace(hf_layout(_DELTA), carried=_MTP)

QWEN3_5 = part_of(
    Family(
        name="qwen3_5_text",
        architectures=("Qwen3_5ForCausalLM",),
        hf=HF_WITH_STATES,
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
    ),
    OuterModel(
        architecture="Qwen3_5ForConditionalGeneration",
        model_type="qwen3_5",
        carried=("model.visual.*",),
        fields=OUTER_FIELDS,
    ),
)
