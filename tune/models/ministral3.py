"""Ministral 3: sizes, builders and tokenizer; how its checkpoints name their weights and sizes.

All published ones also see pictures. Their text model is read; the rest goes along into what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.hf_config import (
    finish,
    read_rope,
    read_sizes,
    windows_everywhere,
    write_scaling,
    write_sizes,
)
from tune.models.layouts import hf_layout
from tune.models.mistral import MISTRAL3, one_window
from tune.models.outer import part_of
from tune.modules import DecoderConfig, Family, QueryScaling, YarnScaling

# What a text_config leaves out, and what holds where nothing is said of rotary positions.  # transformers,
# Ministral3Config
_DEFAULT_SIZES = {
    "vocab_size": 131_072,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
}
_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    given, older = content.get("rope_parameters"), content.get("rope_scaling")
    if given is None and isinstance(older, Mapping):
        given = {"rope_theta": content.get("rope_theta", _DEFAULT_ROPE["rope_theta"]), **older}
        content = {
            name: value for name, value in content.items() if name not in ("rope_scaling", "rope_theta")
        }
    rope = dict(given) if isinstance(given, Mapping) else dict(_DEFAULT_ROPE) if given is None else given
    growth = ConfigFields(rope if isinstance(rope, dict) else {}, "rope_parameters")
    beta, original = growth.number("llama_4_scaling_beta"), 1
    if beta:
        original = growth.integer("original_max_position_embeddings")
    if isinstance(rope, dict):
        # transformers reads past the second one.
        rope = {
            name: value
            for name, value in rope.items()
            if name not in ("llama_4_scaling_beta", "max_position_embeddings")
        }
    fields = ConfigFields({**content, "rope_parameters": rope}, "config.json")
    sizes = read_sizes(fields, max_seq_len=262_144, norm_eps=1e-5, head_dim=128, num_kv_heads=8)
    arguments = {**sizes, **read_rope(fields, sizes)}
    growth.ignore(rope if isinstance(rope, dict) else ())
    growth.ignore(("max_position_embeddings",))
    growth.note_in(fields)
    arguments["query_scaling"] = QueryScaling(beta, original) if beta else None
    arguments.update(windows_everywhere(fields.optional_integer("sliding_window", None), sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    fields.expect("layer_types")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    scaling = {"rope_type": "default"} if config.rope_scaling is None else write_scaling(config.rope_scaling)
    growth: dict[str, Any] = {"llama_4_scaling_beta": 0.0}
    if config.query_scaling is not None:
        growth = {
            "llama_4_scaling_beta": config.query_scaling.beta,
            "original_max_position_embeddings": config.query_scaling.original_max_seq_len,
        }
    return {
        **write_sizes(config),
        "rope_parameters": {"rope_theta": config.rope_base, **scaling, **growth},
        "hidden_act": "silu",
        "sliding_window": one_window(config, "config.json"),
    }


MINISTRAL3 = part_of(
    Family(
        name="ministral3",
        architectures=("Ministral3ForCausalLM",),
        classifier="Ministral3ForSequenceClassification",
        hf=hf_layout(),
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
    ),
    replace(MISTRAL3, defaults=_DEFAULT_SIZES),
)

# mistralai/Ministral-3-3B-Base-2512, -8B- and -14B-, config.json, as NVIDIA-NeMo/Megatron-Bridge has them
# (models/ministral3), and transformers' Ministral3Config for the 8B.
_8B = DecoderConfig(
    vocab_size=131_072,
    num_layers=34,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=262_144,
    norm_eps=1e-5,
    rope_base=1_000_000.0,
    rope_scaling=YarnScaling(16.0, 16_384, mscale=1.0, mscale_all_dim=1.0),
    query_scaling=QueryScaling(0.1, 16_384),
)
_3B = replace(_8B, num_layers=26, embed_dim=3072, intermediate_dim=9216, tie_word_embeddings=True)
_14B = replace(_8B, num_layers=40, embed_dim=5120, intermediate_dim=16_384, rope_base=1_000_000_000.0)

ministral3_3b = ModelBuilder(MINISTRAL3, _3B)
ministral3_8b = ModelBuilder(MINISTRAL3, _8B)
ministral3_14b = ModelBuilder(MINISTRAL3, _14B)

lora_ministral3_3b = LoRABuilder(ministral3_3b)
lora_ministral3_8b = LoRABuilder(ministral3_8b)
lora_ministral3_14b = LoRABuilder(ministral3_14b)
qlora_ministral3_3b = LoRABuilder(ministral3_3b, quantize_base=True)
qlora_ministral3_8b = LoRABuilder(ministral3_8b, quantize_base=True)
qlora_ministral3_14b = LoRABuilder(ministral3_14b, quantize_base=True)

ministral3_tokenizer = tokenizer_at
