"""SmolLM3: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout
from tune.models.qwen2 import LAYER_KINDS, read_windows
from tune.modules import DecoderConfig, Family

_USUAL_PADDING_ID = 128_004  # transformers, SmolLM3Config


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, num_kv_heads=4, tied=True)
    arguments = {**sizes, **read_rope(fields, sizes, base=2_000_000.0)}
    nope_layers = _nope_layers(fields, sizes["num_layers"])
    arguments |= {
        **read_windows(fields, sizes["num_layers"], window=None, layers=nope_layers),
        "nope_layers": nope_layers,
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
        "mlp_bias": fields.flag("mlp_bias", False),
    }
    fields.expect("hidden_act", "silu")
    fields.ignore(("max_window_layers",))  # no version of the model reads it
    return finish(fields, arguments)


def _nope_layers(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
    """Return the layers without rotary positions: listed as 0 (1 turns), or one in each interval, its last."""
    interval = fields.integer("no_rope_layer_interval", 4)
    turns = fields.choices("no_rope_layers", num_layers, 0, 1)
    if turns is not None:
        return tuple(index for index, does_turn in enumerate(turns) if not does_turn)
    if interval < 1:
        fields.problem(f"`no_rope_layer_interval` is {interval}; it must be at least 1")
        return ()
    return tuple(index for index in layer_range(num_layers) if (index + 1) % interval == 0)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    layers = range(config.num_layers)
    content = {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "no_rope_layers": [int(layer not in config.nope_layers) for layer in layers],
        "layer_types": [LAYER_KINDS[layer in config.sliding_layers] for layer in layers],
        "use_sliding_window": bool(config.sliding_layers),
        "sliding_window": config.sliding_window,
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "mlp_bias": config.mlp_bias,
    }
    if config.vocab_size <= _USUAL_PADDING_ID:
        # Absent it would mean the usual one, which such a model has no row for.
        content["pad_token_id"] = None
    return content


SMOLLM3 = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    classifier="SmolLM3ForSequenceClassification",
    hf=hf_layout(),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

# HuggingFaceTB/SmolLM3-3B, config.json; every fourth layer has no positions.
_3B = DecoderConfig(
    vocab_size=128_256,
    num_layers=36,
    num_heads=16,
    num_kv_heads=4,
    embed_dim=2048,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=65_536,
    norm_eps=1e-6,
    rope_base=5_000_000.0,
    tie_word_embeddings=True,
    nope_layers=tuple(range(3, 36, 4)),
)

smollm3_3b = ModelBuilder(SMOLLM3, _3B)

smollm3_tokenizer = tokenizer_at
