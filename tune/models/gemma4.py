"""Gemma 4: sizes and builders of the text models, tokenizer; how its checkpoints name their weights and sizes.

All published ones also see pictures, and some hear. Their text model is read; the rest goes along into what is saved.
The 12B has an outer model of another kind, and its text model another name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.gemma2 import FOUR_NORMS
from tune.models.hf_config import finish, layer_range, read_sizes, write_sizes
from tune.models.layouts import hf_layout
from tune.models.outer import part_of
from tune.models.rope_by_kind import read_rope_parameters, write_rope_by_kind
from tune.modules import (
    DecoderConfig,
    Family,
    FullAttentionConfig,
    MoEConfig,
    OuterModel,
    PerLayerInputConfig,
    ProportionalScaling,
    SharedKVConfig,
    WeightRule,
)

_SLIDING, _FULL = "sliding_attention", "full_attention"
# What a text_config leaves out, since it writes only what differs.  # transformers, Gemma4TextConfig
_DEFAULT_SIZES = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
}
_TABLE_ROWS = 262_144
_GLOBAL_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0
_DEFAULT_ROPE = {
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": _GLOBAL_BASE},
    _SLIDING: {"rope_type": "default", "rope_theta": _LOCAL_BASE},
}
_OUTER_FIELDS = (
    *("vision_config", "audio_config", "vision_soft_tokens_per_image", "processor_class"),
    *("boi_token_id", "eoi_token_id", "image_token_id", "video_token_id"),
    *("boa_token_id", "eoa_token_id", "eoa_token_index", "audio_token_id"),
)


def _reader(
    max_seq_len: int, window: int, per_layer_dim: int
) -> Callable[[Mapping[str, Any]], DecoderConfig]:
    """Return what reads a configuration, with what holds where it is silent."""

    def read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
        fields = ConfigFields({**_DEFAULT_SIZES, **content}, "config.json")
        sizes = read_sizes(
            fields, max_seq_len=max_seq_len, norm_eps=1e-6, head_dim=256, num_kv_heads=4, tied=True
        )
        kinds = _read_kinds(fields, sizes["num_layers"])
        fields.expect("hidden_activation", "gelu_pytorch_tanh")
        # Of pictures' tokens alone, or of all; a text is read from left to right.
        fields.expect("use_bidirectional_attention", "vision")
        return finish(
            fields,
            {
                **sizes,
                **_constants(sizes["embed_dim"]),
                **read_rope_parameters(fields, sizes, _DEFAULT_ROPE),
                "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
                "final_softcap": fields.optional_number("final_logit_softcapping", None),
                "sliding_window": fields.integer("sliding_window", window),
                "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING),
                "full_attention": _read_full_attention(fields, sizes, kinds),
                "shared_kv": _read_shared_kv(fields, sizes["intermediate_dim"]),
                "per_layer_input": _read_per_layer_input(fields, per_layer_dim),
                "moe": _read_experts(fields),
            },
        )

    return read_hf_config


def _constants(embed_dim: int) -> dict[str, Any]:
    """Return what every Gemma 4 has by design."""
    return {
        "activation": "gelu_tanh",
        "norm_placement": "both",
        "qk_norm": "head",
        "v_norm": True,
        "attn_scale": 1.0,
        "layer_scale": True,
        "embed_scale": math.sqrt(max(embed_dim, 1)),
    }


def _read_kinds(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Return which layers have a window. The last one has none, whatever the file says, as in transformers."""
    kinds = fields.choices("layer_types", min(max(num_layers, 0), 10_000), _SLIDING, _FULL)
    if kinds is None:
        kinds = tuple(_SLIDING if (layer + 1) % 6 else _FULL for layer in layer_range(num_layers))
    return (*kinds[:-1], _FULL) if kinds else ()


def _read_full_attention(
    fields: ConfigFields, sizes: Mapping[str, Any], kinds: tuple[str, ...]
) -> FullAttentionConfig:
    """Return the heads of layers without a window; transformers writes them layer by layer from 5.23 on."""
    keys_as_values = fields.flag("attention_k_eq_v", False)
    head_dim = fields.integer("global_head_dim", 512)
    num_kv_heads = fields.optional_integer("num_global_key_value_heads", None)
    if num_kv_heads is None or not keys_as_values:
        num_kv_heads = sizes["num_kv_heads"]
    by_layer = fields.mapping("per_layer_config")
    if (
        fields.has("per_layer_config") and not by_layer
    ):  # of heads that are alike in all layers nothing is left to say
        head_dim, num_kv_heads = sizes["head_dim"], sizes["num_kv_heads"]
    if by_layer:
        full = {layer for layer, kind in enumerate(kinds) if kind == _FULL}
        one = next(iter(by_layer.values()))
        first = ConfigFields(one if isinstance(one, dict) else {}, "per_layer_config")
        head_dim = first.integer("head_dim", sizes["head_dim"])
        num_kv_heads = first.integer("num_key_value_heads", sizes["num_kv_heads"])
        first.note_in(fields)
        is_one = isinstance(one, dict) and all(entry == one for entry in by_layer.values())
        # Written as wide as the highest of them: "05" beside "59".
        layers = {int(layer) if layer.isdecimal() and len(layer) < 10 else -1 for layer in by_layer}
        if layers != full or not is_one:
            fields.problem(
                "`per_layer_config` is not one and the same for all layers of full_attention, and for no others"
            )
    return FullAttentionConfig(head_dim, num_kv_heads, keys_as_values)


def _read_shared_kv(fields: ConfigFields, intermediate_dim: int) -> SharedKVConfig | None:
    is_wide = fields.flag("use_double_wide_mlp", False)
    num_layers = fields.integer("num_kv_shared_layers", 0)
    return SharedKVConfig(num_layers, intermediate_dim * (1 + is_wide)) if num_layers else None


def _read_per_layer_input(fields: ConfigFields, default_dim: int) -> PerLayerInputConfig | None:
    num_rows = fields.integer("vocab_size_per_layer_input", _TABLE_ROWS)
    dim = fields.optional_integer("hidden_size_per_layer_input", default_dim)
    return PerLayerInputConfig(num_rows, dim) if dim else None


def _read_experts(fields: ConfigFields) -> MoEConfig | None:
    if not fields.flag("enable_moe_block", False):
        fields.ignore(("num_experts", "top_k_experts", "moe_intermediate_size"))
        return None
    return MoEConfig(
        num_experts=fields.integer("num_experts"),
        experts_per_token=fields.integer("top_k_experts"),
        intermediate_dim=fields.integer("moe_intermediate_size"),
        is_beside=True,
    )


def _write_without_extras(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of all, without those of inputs by layer and of experts."""
    full, sliding = config.full_attention, set(config.sliding_layers)
    content = {
        **write_sizes(config),
        **write_rope_by_kind(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.attn_bias == "all",
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": config.sliding_window,
        "layer_types": [_SLIDING if layer in sliding else _FULL for layer in range(config.num_layers)],
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
    }
    if full is not None:
        content |= {"global_head_dim": full.head_dim, "attention_k_eq_v": full.keys_as_values}
        if full.keys_as_values:
            content["num_global_key_value_heads"] = full.num_kv_heads
        elif full.num_kv_heads != config.num_kv_heads:
            sizes = {"head_dim": full.head_dim, "num_key_value_heads": full.num_kv_heads}
            content["per_layer_config"] = {
                str(layer): sizes for layer in range(config.num_layers) if layer not in sliding
            }
    if config.shared_kv is not None:
        content["num_kv_shared_layers"] = config.shared_kv.num_layers
        content["use_double_wide_mlp"] = config.shared_kv.intermediate_dim != config.intermediate_dim
    return content


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = _write_without_extras(config)
    content |= {"hidden_size_per_layer_input": 0, "enable_moe_block": config.moe is not None}
    if config.per_layer_input is not None:
        content["hidden_size_per_layer_input"] = config.per_layer_input.dim
        content["vocab_size_per_layer_input"] = config.per_layer_input.vocab_size
    if config.moe is not None:
        content["num_experts"] = config.moe.num_experts
        content["top_k_experts"] = config.moe.experts_per_token
        content["moe_intermediate_size"] = config.moe.intermediate_dim
    return content


_IN_BLOCKS = {
    **FOUR_NORMS,
    "per_layer.gate.weight": "per_layer_input_gate.weight",
    "per_layer.projection.weight": "per_layer_projection.weight",
    "per_layer.norm.scale": "post_per_layer_input_norm.weight",
    "layer_scale.value": "layer_scalar",
    "moe.router.weight": "router.proj.weight",
    "moe.router.scale": "router.scale",
    "moe.router.per_expert_scale": "router.per_expert_scale",
    "moe.mlp_norm.scale": "post_feedforward_layernorm_1.weight",
    "moe.input_norm.scale": "pre_feedforward_layernorm_2.weight",
    "moe.output_norm.scale": "post_feedforward_layernorm_2.weight",
    # The matrices of all experts in one tensor, gates above those they open.
    "moe.experts.{}.w1.weight": "experts.gate_up_proj",
    "moe.experts.{}.w2.weight": "experts.down_proj",
    "moe.experts.{}.w3.weight": "experts.gate_up_proj",
}
_ALONE = {
    "per_layer_input.table.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_input.projection.weight": "model.per_layer_model_projection.weight",
    "per_layer_input.norm.scale": "model.per_layer_projection_norm.weight",
}
_BASE = hf_layout(_IN_BLOCKS)
_HF = replace(
    _BASE,
    rules=(*_BASE.rules, *(WeightRule(ours, theirs) for ours, theirs in _ALONE.items())),
    # The published files have them, and nothing reads them.
    carried_of_sharing=tuple(
        f"model.layers.{{}}.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm", "v_norm")
    ),
)

GEMMA4 = part_of(
    Family(
        name="gemma4_text",
        architectures=("Gemma4ForCausalLM",),
        hf=_HF,
        read_hf_config=_reader(131_072, 512, 256),
        write_hf_config=_write_hf_config,
    ),
    OuterModel(
        architecture="Gemma4ForConditionalGeneration",
        model_type="gemma4",
        carried=(
            "model.vision_tower.*",
            "model.audio_tower.*",
            "model.embed_vision.*",
            "model.embed_audio.*",
        ),
        fields=_OUTER_FIELDS,
    ),
)
GEMMA4_UNIFIED = part_of(
    Family(
        name="gemma4_unified_text",
        architectures=("Gemma4UnifiedForCausalLM",),
        hf=_HF,
        read_hf_config=_reader(262_144, 1024, 0),
        write_hf_config=_write_without_extras,
    ),
    OuterModel(
        architecture="Gemma4UnifiedForConditionalGeneration",
        model_type="gemma4_unified",
        carried=("model.vision_embedder.*", "model.embed_vision.*", "model.embed_audio.*"),
        fields=_OUTER_FIELDS,
    ),
)


def _all_but_every(interval: int, num_layers: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(num_layers) if (layer + 1) % interval)


def _large(num_layers: int, embed_dim: int, num_global_kv_heads: int, **others: Any) -> DecoderConfig:
    # google/gemma-4-31B-it, config.json; of the others as public code that reads them has it.
    return DecoderConfig(
        vocab_size=262_144,
        num_layers=num_layers,
        embed_dim=embed_dim,
        head_dim=256,
        max_seq_len=262_144,
        norm_eps=1e-6,
        rope_base=_GLOBAL_BASE,
        rope_scaling=ProportionalScaling(0.25),
        local_rope_base=_LOCAL_BASE,
        tie_word_embeddings=True,
        sliding_window=1024,
        sliding_layers=_all_but_every(6, num_layers),
        full_attention=FullAttentionConfig(512, num_global_kv_heads, keys_as_values=True),
        final_softcap=30.0,
        **others,
        **_constants(embed_dim),
    )


def _small(num_layers: int, interval: int, **others: Any) -> DecoderConfig:
    large = _large(num_layers, 1536, 1, num_heads=8, num_kv_heads=1, intermediate_dim=6144)
    small = replace(
        large,
        max_seq_len=131_072,
        sliding_window=512,
        sliding_layers=_all_but_every(interval, num_layers),
        per_layer_input=PerLayerInputConfig(262_144, 256),
        full_attention=FullAttentionConfig(512, others.get("num_kv_heads", 1)),
    )
    return replace(small, **others)


_31B = _large(60, 5376, 4, num_heads=32, num_kv_heads=16, intermediate_dim=21_504)
_12B = _large(48, 3840, 1, num_heads=16, num_kv_heads=8, intermediate_dim=15_360)
_26B = _large(
    30,
    2816,
    2,
    num_heads=16,
    num_kv_heads=8,
    intermediate_dim=2112,
    moe=MoEConfig(num_experts=128, experts_per_token=8, intermediate_dim=704, is_beside=True),
)
_E2B = _small(35, 5, shared_kv=SharedKVConfig(20, 12_288))
_E4B = _small(
    42,
    6,
    embed_dim=2560,
    embed_scale=math.sqrt(2560),
    num_kv_heads=2,
    intermediate_dim=10_240,
    shared_kv=SharedKVConfig(18, 10_240),
)

gemma4_e2b = ModelBuilder(GEMMA4, _E2B)
gemma4_e4b = ModelBuilder(GEMMA4, _E4B)
gemma4_12b = ModelBuilder(GEMMA4_UNIFIED, _12B)
gemma4_31b = ModelBuilder(GEMMA4, _31B)
gemma4_26b_a4b = ModelBuilder(GEMMA4, _26B)

lora_gemma4_e2b = LoRABuilder(gemma4_e2b)
lora_gemma4_e4b = LoRABuilder(gemma4_e4b)
lora_gemma4_12b = LoRABuilder(gemma4_12b)
lora_gemma4_31b = LoRABuilder(gemma4_31b)
lora_gemma4_26b_a4b = LoRABuilder(gemma4_26b_a4b)
qlora_gemma4_e2b = LoRABuilder(gemma4_e2b, quantize_base=True)
qlora_gemma4_e4b = LoRABuilder(gemma4_e4b, quantize_base=True)
qlora_gemma4_12b = LoRABuilder(gemma4_12b, quantize_base=True)
qlora_gemma4_31b = LoRABuilder(gemma4_31b, quantize_base=True)
qlora_gemma4_26b_a4b = LoRABuilder(gemma4_26b_a4b, quantize_base=True)

gemma4_tokenizer = tokenizer_at
