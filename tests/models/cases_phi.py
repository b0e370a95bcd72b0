"""Phi-3 and Phi-4 in small awkward sizes: name of the case -> transformers' configuration."""

from __future__ import annotations

from collections.abc import Callable

from transformers import Phi3Config, PreTrainedConfig

# Vocabulary, width, feed-forward, layers, heads, key heads: all different, the vocabulary odd.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-4,
    "pad_token_id": None,
    "eos_token_id": None,
}


def longrope(num_frequencies: int) -> dict[str, object]:
    return {
        "rope_type": "longrope",
        "rope_theta": 300.0,
        "short_factor": [1.0 + 0.1 * index for index in range(num_frequencies)],
        "long_factor": [1.5 + 0.7 * index for index in range(num_frequencies)],
    }


CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "phi3-window": lambda: Phi3Config(**SIZES, sliding_window=7),
    # The original length lies between the harness's shorter texts and its positions from 30 on.
    "phi3-longrope-short": lambda: Phi3Config(
        **SIZES | {"max_position_embeddings": 90},
        original_max_position_embeddings=29,
        rope_parameters=longrope(4),
        sliding_window=262_144,
    ),
    # Nearly every text of the harness is a long one.
    "phi3-longrope-long": lambda: Phi3Config(
        **SIZES | {"num_key_value_heads": 6, "max_position_embeddings": 3},
        original_max_position_embeddings=2,
        rope_parameters=longrope(4),
    ),
    "phi4": lambda: Phi3Config(**SIZES | {"rope_theta": 250.0, "num_key_value_heads": 3}),
    "phi4-mini": lambda: Phi3Config(
        **SIZES | {"max_position_embeddings": 90},
        original_max_position_embeddings=29,
        rope_scaling=longrope(3),
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
}
