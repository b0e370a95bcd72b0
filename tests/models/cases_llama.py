"""Llama and its successors in small awkward sizes: name of the case -> transformers' configuration."""

from __future__ import annotations

from collections.abc import Callable

from transformers import LlamaConfig, PreTrainedConfig

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
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, rope_theta=500.0),
    "llama-tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-wide-heads": lambda: LlamaConfig(**SIZES, head_dim=14),
    "llama-biases": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-linear-rope": lambda: LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
    ),
    "llama-yarn-rope": lambda: LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-yarn-fractional": lambda: LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 3.0,
            "beta_slow": 0.3,
            "attention_factor": 1.3,
            "truncate": False,
        },
    ),
    "llama3.1": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama3.2-tied": lambda: LlamaConfig(
        **SIZES, rope_parameters={**LLAMA3_ROPE, "factor": 32.0}, tie_word_embeddings=True
    ),
}
