"""Muse-Glimmer: size and builders of the text model, tokenizer; how its checkpoints name their weights and sizes.

The published one also sees pictures. Its text model is read; the rest goes along into what is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.gemma2 import FOUR_NORMS
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_scaling, write_sizes
from tune.models.layouts import hf_layout
from tune.models.outer import part_of
from tune.modules import DecoderConfig, Family, OuterModel

_SLIDING, _FULL = "sliding_attention", "full_attention"
_INTERVAL = 4  # of the layers without window and positions, counted from the last one
# What a text_config leaves out.  # transformers, MuseGlimmerTextConfig
_DEFAULT_SIZES = {
    "vocab_size": 202_048,
    "hidden_size": 6656,
    "intermediate_size": 19_968,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
}
_QK_FACTOR, _OUTPUT_FACTOR = 3.87, 0.19611613513818404


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields({**_DEFAULT_SIZES, **content}, "config.json")
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1e-5, head_dim=128, num_kv_heads=2)
    num_layers = sizes["num_layers"]
    rope = read_rope(fields, sizes)
    kinds = fields.choices("layer_types", min(max(num_layers, 0), 10_000), _SLIDING, _FULL)
    if kinds is None:
        kinds = tuple(_FULL if _is_full(layer, num_layers) else _SLIDING for layer in layer_range(num_layers))
    softcap = fields.optional_number("final_logit_softcapping", 20.0)
    if softcap is None:
        fields.problem("`final_logit_softcapping` is null; no such model is without its soft cap")
    fields.expect("hidden_activation", "silu")
    return finish(
        fields,
        {
            **sizes,
            **rope,
            **_constants(),
            "post_norm_eps": fields.number("post_norm_eps", 1e-8),
            "nope_layers": _read_nope_layers(fields, num_layers, rope["rope_base"]),
            "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
            "attn_scale": _read_factor(fields, "qk_scale_factor", _QK_FACTOR)
            * _inverse_root(sizes["head_dim"]),
            "sliding_window": fields.optional_integer("sliding_window", 2048),
            "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING),
            "logit_divisor": 1.0 / _read_factor(fields, "output_multiplier", _OUTPUT_FACTOR),
            "final_softcap": softcap,
        },
    )


def _constants() -> dict[str, Any]:
    """Return what every Muse-Glimmer has by design."""
    return {
        "norm_placement": "both",
        "norm_offset": 1.0,
        "final_norm_offset": 0.0,
        "embed_norm": True,
        "qk_norm": "scaleless",
        "attn_gate": True,
        "attn_gate_apart": True,
    }


def _is_full(layer: int, num_layers: int) -> bool:
    return (num_layers - 1 - layer) % _INTERVAL == 0


def _inverse_root(head_dim: int) -> float:
    return 1.0 / math.sqrt(max(head_dim, 1))


def _read_factor(fields: ConfigFields, name: str, default: float) -> float:
    factor = fields.number(name, default)
    if factor <= 0:
        fields.problem(f"`{name}` is {factor:g}; it must be above 0")
        return default
    return factor


def _read_nope_layers(fields: ConfigFields, num_layers: int, base: float) -> tuple[int, ...]:
    """Return the layers without rotary positions, whose base is 0: listed, or by their place."""
    if not fields.has("layer_rope_theta"):
        fields.ignore(("layer_rope_theta",))
        return tuple(layer for layer in layer_range(num_layers) if _is_full(layer, num_layers))
    bases = fields.numbers("layer_rope_theta")[: max(num_layers, 0)]
    if len(bases) < num_layers:
        fields.problem(f"`layer_rope_theta` has {len(bases)} entries, and there are {num_layers} layers")
    if others := sorted({*bases} - {0.0, base}):
        # transformers asks whether it is 0, and turns by `rope_theta`.
        fields.problem(
            f"`layer_rope_theta` has {others[0]:g}, which is neither 0 nor the `rope_theta` of {base:g}: which one the "
            "weights know is open"
        )
    return tuple(layer for layer, own in enumerate(bases) if own == 0)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    layers = range(config.num_layers)
    scaling = {"rope_type": "default"} if config.rope_scaling is None else write_scaling(config.rope_scaling)
    root = _inverse_root(config.head_dim)
    scale = root if config.attn_scale is None else config.attn_scale
    return {
        **write_sizes(config),
        "rope_parameters": {"rope_theta": config.rope_base, **scaling},
        "layer_rope_theta": [0.0 if layer in config.nope_layers else config.rope_base for layer in layers],
        "layer_types": [_SLIDING if layer in config.sliding_layers else _FULL for layer in layers],
        "sliding_window": config.sliding_window,
        "hidden_activation": "silu",
        "attention_bias": config.attn_bias == "all",
        "post_norm_eps": config.norm_eps if config.post_norm_eps is None else config.post_norm_eps,
        "qk_scale_factor": _shortest(scale / root, lambda factor: factor * root == scale),
        "output_multiplier": _shortest(
            1.0 / config.logit_divisor, lambda factor: 1.0 / factor == config.logit_divisor
        ),
        "final_logit_softcapping": config.final_softcap,
    }


def _shortest(factor: float, is_read_alike: Callable[[float], bool]) -> float:
    """Return the factor with as few digits as say the same, so that what is read again is what it was."""
    rounded = (float(f"{factor:.{digits}g}") for digits in range(1, 18))
    return next((number for number in rounded if is_read_alike(number)), factor)


MUSE_GLIMMER = part_of(
    Family(
        name="muse_glimmer_text",
        architectures=("MuseGlimmerForCausalLM",),
        hf=hf_layout({**FOUR_NORMS, "attn.gate_proj.weight": "self_attn.gate_proj.weight"}),
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
    ),
    OuterModel(
        architecture="MuseGlimmerForConditionalGeneration",
        model_type="muse_glimmer",
        carried=("model.vision_tower.*", "model.vision_adapter.*", "model.vision_projection.*"),
        fields=(
            *("vision_config", "image_token_id", "video_token_id", "processor_class"),
            *("out_hidden_size", "projector_hidden_size", "projector_hidden_act"),
        ),
    ),
)

# meta-models/Muse-Glimmer-30B: transformers' MuseGlimmerTextConfig, and the rotary base, which that class takes from
# the file, as public code that reads the file has it.
_30B = DecoderConfig(
    vocab_size=202_048,
    num_layers=52,
    num_heads=32,
    num_kv_heads=2,
    embed_dim=6656,
    head_dim=128,
    intermediate_dim=19_968,
    max_seq_len=131_072,
    norm_eps=1e-5,
    post_norm_eps=1e-8,
    rope_base=500_000.0,
    nope_layers=tuple(range(3, 52, _INTERVAL)),
    attn_scale=_QK_FACTOR * _inverse_root(128),
    sliding_window=2048,
    sliding_layers=tuple(layer for layer in range(52) if not _is_full(layer, 52)),
    logit_divisor=1.0 / _OUTPUT_FACTOR,
    final_softcap=20.0,
    **_constants(),
)

muse_glimmer_30b = ModelBuilder(MUSE_GLIMMER, _30B)

lora_muse_glimmer_30b = LoRABuilder(muse_glimmer_30b)
qlora_muse_glimmer_30b = LoRABuilder(muse_glimmer_30b, quantize_base=True)

muse_glimmer_tokenizer = tokenizer_at
