"""How checkpoints of Gemma name their weights, and what their config.json says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family


def read_gemma(fields: ConfigFields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all Gemmas have in common: scaled embeddings, norms around one, a gelu gate.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
    """
    # Gemma's first files say "gelu" and mean its tanh form.  # transformers, GemmaConfig
    fields.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", False)
    fields.ignore(("cache_implementation",))
    return {
        **sizes,
        "activation": "gelu_tanh",
        "norm_offset": 1.0,
        "embed_scale": math.sqrt(max(sizes["embed_dim"], 1)),
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
    }


def write_gemma(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields that all Gemmas have in common, without those of rotary positions and of the gate."""
    return {
        **write_sizes(config),
        "attention_bias": config.attn_bias == "all",
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=8192, norm_eps=1e-6, head_dim=256, num_kv_heads=16, tied=True)
    arguments = {**read_gemma(fields, sizes), **read_rope(fields, sizes)}
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_gemma(config), **write_rope(config), "hidden_act": "gelu_pytorch_tanh"}


_HF = hf_layout()

GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    hf=_HF,
    # torchtune, models/gemma/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=True),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
