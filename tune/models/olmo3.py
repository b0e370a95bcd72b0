"""OLMo 3: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, layer_range, read_sizes, write_scaling, write_sizes
from tune.models.olmo2 import OLMO2
from tune.models.qwen2 import LAYER_KINDS
from tune.models.rope_by_kind import read_rope_by_kind, write_rope_by_kind
from tune.modules import DecoderConfig, Family, YarnScaling

_BASE = 500_000.0


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-5)
    num_layers = sizes["num_layers"]
    # Older files have one base for all layers.
    base = fields.number("rope_theta", _BASE)
    kinds = fields.choices("layer_types", num_layers, *LAYER_KINDS)
    if kinds is None:
        kinds = tuple(LAYER_KINDS[(layer + 1) % 4 != 0] for layer in layer_range(num_layers))
    arguments = {
        **sizes,
        **read_rope_by_kind(fields, sizes, base=_BASE, local_base=base),
        "norm_placement": "post",
        "qk_norm": "width",
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
        "sliding_window": fields.optional_integer("sliding_window", 4096),
        "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == LAYER_KINDS[True]),
    }
    fields.expect("hidden_act", "silu")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope_by_kind(config),
        # Where tools of before transformers 5 look.
        "rope_theta": config.rope_base,
        "rope_scaling": None if config.rope_scaling is None else write_scaling(config.rope_scaling),
        "layer_types": [LAYER_KINDS[layer in config.sliding_layers] for layer in range(config.num_layers)],
        "sliding_window": config.sliding_window,
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        # transformers' own are those of another tokenizer.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


OLMO3 = Family(
    name="olmo3",
    architectures=("Olmo3ForCausalLM",),
    classifier="Olmo3ForSequenceClassification",
    hf=OLMO2.hf,
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# allenai/Olmo-3-1025-7B and Olmo-3-1125-32B, config.json, as rasbt/LLMs-from-scratch, ch05/13_olmo3, has them.
_7B = DecoderConfig(
    vocab_size=100_278,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=65_536,
    norm_eps=1e-6,
    rope_base=_BASE,
    rope_scaling=YarnScaling(8.0, 8192, magnitude=1.2079441541679836),
    local_rope_base=_BASE,
    qk_norm="width",
    norm_placement="post",
    sliding_window=4096,
    sliding_layers=tuple(layer for layer in range(32) if (layer + 1) % 4),
)
_32B = replace(
    _7B,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    embed_dim=5120,
    intermediate_dim=27_648,
    sliding_layers=tuple(layer for layer in range(64) if (layer + 1) % 4),
)

olmo3_7b = ModelBuilder(OLMO3, _7B)
olmo3_32b = ModelBuilder(OLMO3, _32B)

lora_olmo3_7b = LoRABuilder(olmo3_7b)
lora_olmo3_32b = LoRABuilder(olmo3_32b)
qlora_olmo3_7b = LoRABuilder(olmo3_7b, quantize_base=True)
qlora_olmo3_32b = LoRABuilder(olmo3_32b, quantize_base=True)

olmo3_tokenizer = tokenizer_at
