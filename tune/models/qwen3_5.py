"""Qwen3.5 and its successors of the same build (3.6, 3.8), the dense text models: sizes, builders, names in files.

Three of four layers keep a state instead of attending. The published checkpoints also see pictures, and guess more
than one token ahead: their text model is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
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
from tune.models.qwen2 import qwen2_tokenizer
from tune.modules import DecoderConfig, Family, GatedDeltaConfig, OuterModel, TransformerDecoder

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
MTP = ("mtp.*",)
# Of the larger models' config.json.
OUTER_FIELDS = (
    *("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    *("language_model_only", "processor_class"),
)
_KINDS = ("linear_attention", "full_attention")


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    return read_hybrid({**_DEFAULT_SIZES, **content})


def read_hybrid(
    content: Mapping[str, Any],
    read_others: Callable[[ConfigFields], dict[str, Any]] | None = None,
    has_dense_layers: bool = False,
) -> DecoderConfig:
    """Return the sizes of a decoder with layers of both kinds.

    Args:
        content: of config.json, sizes of the family's own defaults among it.
        read_others: returns what a kin of the family says beyond that.
        has_dense_layers: which says what layers have no experts.
    """
    fields = ConfigFields(_with_share(content), "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, head_dim=256, num_kv_heads=4)
    arguments = {
        **sizes,
        **read_rope(fields, sizes, partial=True),
        **delta_constants(),
        "delta": read_delta(fields, sizes["num_layers"]),
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
        **({} if read_others is None else read_others(fields)),
    }
    fields.expect("hidden_act", "silu")
    fields.expect("attn_output_gate", True)
    if not has_dense_layers:
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


def write_hybrid(config: DecoderConfig) -> dict[str, Any]:
    """Return config.json's content for a decoder with layers of both kinds."""
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


DELTA_NAMES = {
    **{
        f"attn.{name}.weight": f"linear_attn.{name}.weight"
        for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
    },
    "attn.conv_weight": "linear_attn.conv1d.weight",
    "attn.a_log": "linear_attn.A_log",
    "attn.dt_bias": "linear_attn.dt_bias",
    "attn.norm.scale": "linear_attn.norm.weight",
}
QWEN3_5 = part_of(
    Family(
        name="qwen3_5_text",
        architectures=("Qwen3_5ForCausalLM",),
        hf=replace(hf_layout(DELTA_NAMES), carried=MTP),
        read_hf_config=_read_hf_config,
        write_hf_config=write_hybrid,
    ),
    OuterModel(
        architecture="Qwen3_5ForConditionalGeneration",
        model_type="qwen3_5",
        carried=("model.visual.*",),
        fields=OUTER_FIELDS,
    ),
)


def delta_layers(num_layers: int, interval: int = 4) -> tuple[int, ...]:
    """Return the layers that keep a state: all but the last of each `interval`."""
    return tuple(layer for layer in range(num_layers) if (layer + 1) % interval)


def qwen3_5(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    head_dim: int = 256,
    num_state_heads: int = 32,
    num_state_key_heads: int = 16,
    state_head_dim: int = 128,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 10_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen3.5's dense kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks; of each four, the first three keep a state instead of attending.
        num_heads: query heads of layers that attend.
        num_kv_heads: key and value heads of those.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        head_dim: width of a head of layers that attend, of which a quarter turns.
        num_state_heads: states of the other layers, each with a head of values.
        num_state_key_heads: their heads of queries and keys.
        state_head_dim: width of those heads.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = sizes_by_argument(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_dropout=attn_dropout,
        rotary_dim=int(head_dim * _ROTARY_SHARE),
        delta=GatedDeltaConfig(
            delta_layers(num_layers), num_state_key_heads, num_state_heads, state_head_dim, state_head_dim
        ),
        **delta_constants(),
    )
    return TransformerDecoder(config, QWEN3_5)


# Qwen/Qwen3.5-0.8B to -27B, config.json and model cards; their text models have 752,393,024 to 26,895,998,464 numbers.
_9B = DecoderConfig(
    vocab_size=248_320,
    num_layers=32,
    num_heads=16,
    num_kv_heads=4,
    embed_dim=4096,
    head_dim=256,
    intermediate_dim=12_288,
    max_seq_len=262_144,
    norm_eps=1e-6,
    rope_base=10_000_000.0,
    rotary_dim=64,
    delta=GatedDeltaConfig(delta_layers(32), 16, 32, 128, 128),
    **delta_constants(),
)
_4B = replace(_9B, embed_dim=2560, intermediate_dim=9216, tie_word_embeddings=True)
_2B = replace(
    _4B,
    num_layers=24,
    num_heads=8,
    num_kv_heads=2,
    embed_dim=2048,
    intermediate_dim=6144,
    delta=GatedDeltaConfig(delta_layers(24), 16, 16, 128, 128),
)
_0_8B = replace(_2B, embed_dim=1024, intermediate_dim=3584)
_27B = replace(
    _9B,
    num_layers=64,
    num_heads=24,
    embed_dim=5120,
    intermediate_dim=17_408,
    delta=GatedDeltaConfig(delta_layers(64), 16, 48, 128, 128),
)

qwen3_5_0_8b = ModelBuilder(QWEN3_5, _0_8B)
qwen3_5_2b = ModelBuilder(QWEN3_5, _2B)
qwen3_5_4b = ModelBuilder(QWEN3_5, _4B)
qwen3_5_9b = ModelBuilder(QWEN3_5, _9B)
qwen3_5_27b = ModelBuilder(QWEN3_5, _27B)

# Later models of the same sizes.
qwen3_6_27b = qwen3_5_27b
qwen3_8_27b = qwen3_5_27b

lora_qwen3_5 = LoRABuilder(qwen3_5)
lora_qwen3_5_0_8b = LoRABuilder(qwen3_5_0_8b)
lora_qwen3_5_2b = LoRABuilder(qwen3_5_2b)
lora_qwen3_5_4b = LoRABuilder(qwen3_5_4b)
lora_qwen3_5_9b = LoRABuilder(qwen3_5_9b)
lora_qwen3_5_27b = LoRABuilder(qwen3_5_27b)
qlora_qwen3_5_0_8b = LoRABuilder(qwen3_5_0_8b, quantize_base=True)
qlora_qwen3_5_2b = LoRABuilder(qwen3_5_2b, quantize_base=True)
qlora_qwen3_5_4b = LoRABuilder(qwen3_5_4b, quantize_base=True)
qlora_qwen3_5_9b = LoRABuilder(qwen3_5_9b, quantize_base=True)
qlora_qwen3_5_27b = LoRABuilder(qwen3_5_27b, quantize_base=True)

qwen3_5_tokenizer = qwen2_tokenizer
