"""How checkpoints of Gemma 2 name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.gemma.family import read_gemma, write_gemma
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope
from tune.models.hf_layout import hf_layout
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family

_SLIDING, _FULL = "sliding_attention", "full_attention"
FOUR_NORMS = {
    "sa_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
# The names that torchtune's own converter pairs with Hugging Face's: what it calls the norm before the
# feed-forward holds the one after it, and the reverse.  # torchtune, models/gemma2/_convert_weights.py
_SWAPPED_NORMS = {
    "layers.{}.sa_post_norm.scale": "layers.{}.sa_scale.scale",
    "layers.{}.mlp_post_norm.scale": "layers.{}.mlp_norm.scale",
    "layers.{}.mlp_norm.scale": "layers.{}.mlp_scale.scale",
}


def read_gemma2(fields: ConfigFields, sizes: Mapping[str, Any], *, pattern: int) -> dict[str, Any]:
    """Return what Gemma 2 and 3 have in common: norms on both sides, windows, the scale of scores.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
        pattern: every layer of this number sees everything, where the file does not list the layers.
    """
    num_layers = sizes["num_layers"]
    kinds = fields.choices("layer_types", num_layers, _SLIDING, _FULL)
    if kinds is None:
        kinds = tuple(_SLIDING if (layer + 1) % pattern else _FULL for layer in layer_range(num_layers))
    scalar = fields.number("query_pre_attn_scalar", 256)
    if scalar <= 0:
        fields.problem(f"`query_pre_attn_scalar` is {scalar:g}; it must be above 0")
    return {
        **read_gemma(fields, sizes),
        "norm_placement": "both",
        "attn_scale": scalar**-0.5 if scalar > 0 else None,
        "sliding_window": fields.optional_integer("sliding_window", 4096),
        "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING),
    }


def write_gemma2(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields that Gemma 2 and 3 have in common, without those of rotary positions."""
    sliding = set(config.sliding_layers)
    # The scalar of every published size is a whole number, and transformers takes no other.
    scalar = config.head_dim if config.attn_scale is None else config.attn_scale**-2
    return {
        **write_gemma(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "sliding_window": config.sliding_window,
        "layer_types": [_SLIDING if layer in sliding else _FULL for layer in range(config.num_layers)],
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=8192, norm_eps=1e-6, head_dim=256, num_kv_heads=4, tied=True)
    arguments = {**read_gemma2(fields, sizes, pattern=2), **read_rope(fields, sizes)}
    arguments["attn_softcap"] = fields.optional_number("attn_logit_softcapping", 50.0)
    arguments["final_softcap"] = fields.optional_number("final_logit_softcapping", 30.0)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_gemma2(config), **write_rope(config)}


_HF = hf_layout(FOUR_NORMS)

GEMMA2 = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    hf=_HF,
    torchtune=torchtune_layout(
        _HF,
        {**_SWAPPED_NORMS, "norm.scale": "norm.rms_norm.scale"},
        paired=True,
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
