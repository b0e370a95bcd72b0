"""How checkpoints of OLMo 2 name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.modules import DecoderConfig, Family


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-5)
    arguments = {**sizes, **read_rope(fields, sizes), "norm_placement": "post", "qk_norm": "width"}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    fields.expect("hidden_act", "silu")
    for name in ("sliding_window", "layer_types", "clip_qkv"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        # transformers' own are those of another tokenizer.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


OLMO2 = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    hf=hf_layout(
        {
            "sa_post_norm.scale": "post_attention_layernorm.weight",
            "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
