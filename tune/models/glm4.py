"""GLM-4-0414: tokenizer; how its checkpoints name their weights and sizes.

No size is built by name: `auto` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout
from tune.modules import DecoderConfig, Family


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    # Half of a head turns where nothing is said.  # transformers, Glm4Config
    fields = ConfigFields({"partial_rotary_factor": 0.5, **content}, "config.json")
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1.5625e-7, head_dim=128, num_kv_heads=2)
    arguments = {
        **sizes,
        **read_rope(fields, sizes, partial=True),
        "rotary_pairs": "neighbours",
        "norm_placement": "both",
        "attn_bias": "qkv" if fields.flag("attention_bias", True) else "none",
    }
    fields.expect("hidden_act", "silu")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "partial_rotary_factor": 1.0,
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias != "none",
        # transformers' own are those of the published vocabulary.
        "pad_token_id": None,
    }


GLM4 = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    classifier="Glm4ForSequenceClassification",
    hf=hf_layout(
        {
            "sa_post_norm.scale": "post_self_attn_layernorm.weight",
            "mlp_post_norm.scale": "post_mlp_layernorm.weight",
            "mlp.w1.weight": "mlp.gate_up_proj.weight",
            "mlp.w3.weight": "mlp.gate_up_proj.weight",
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

glm4_tokenizer = tokenizer_at
