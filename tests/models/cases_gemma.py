"""Gemma 1 to 3 in small awkward sizes: name of the case -> transformers' configuration."""

from __future__ import annotations

from collections.abc import Callable

from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, PreTrainedConfig

# Vocabulary, width, feed-forward, layers, heads, key heads, head width: all different, the vocabulary odd.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-4,
    "pad_token_id": None,  # its row of the reference's embedding would get no gradient
}
# Five layers, of which the third sees everything.
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
SCALED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 2.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}

CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma": lambda: GemmaConfig(**SIZES, num_hidden_layers=3),
    "gemma-untied": lambda: GemmaConfig(
        **SIZES | {"head_dim": 8, "num_key_value_heads": 1},
        num_hidden_layers=3,
        tie_word_embeddings=False,
        attention_bias=True,
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        num_hidden_layers=3,
        sliding_window=7,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2-one-cap": lambda: Gemma2Config(
        **SIZES,
        num_hidden_layers=5,
        layer_types=MIXED,
        sliding_window=5,
        attn_logit_softcapping=None,
        final_logit_softcapping=3.0,
        tie_word_embeddings=False,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, num_hidden_layers=7, sliding_window=7, query_pre_attn_scalar=12, rope_parameters=SCALED
    ),
    "gemma3-capped": lambda: Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=5,
        layer_types=MIXED,
        sliding_window=3,
        final_logit_softcapping=3.0,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
}
