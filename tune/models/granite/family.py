"""How checkpoints of Granite 3 name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.modules import DecoderConfig, Family


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    arguments = {
        **sizes,
        **read_rope(fields, sizes),
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
        "mlp_bias": fields.flag("mlp_bias", False),
        "attn_scale": fields.number("attention_multiplier", 1.0),
        "embed_scale": fields.number("embedding_multiplier", 1.0),
        "residual_scale": fields.number("residual_multiplier", 1.0),
        "logit_divisor": fields.number("logits_scaling", 1.0),
    }
    fields.expect("hidden_act", "silu")
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "mlp_bias": config.mlp_bias,
        "attention_multiplier": config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale,
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": config.logit_divisor,
    }


GRANITE = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    hf=hf_layout(),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
