"""OLMo 2 and the mixtures of experts in small awkward sizes: name of the case -> transformers' configuration."""

from __future__ import annotations

from collections.abc import Callable

from transformers import MixtralConfig, Olmo2Config, PreTrainedConfig, Qwen3MoeConfig

# Vocabulary, width, feed-forward, layers, heads, key heads: all different, the vocabulary odd.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 56,  # as the experts': a multiple of 8, which the reference's kernel for experts needs
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-4,
    "pad_token_id": None,
}

CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "olmo2": lambda: Olmo2Config(**SIZES, rope_theta=500.0),
    "olmo2-tied-biases": lambda: Olmo2Config(
        **SIZES | {"num_key_value_heads": 6}, tie_word_embeddings=True, attention_bias=True
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2, head_dim=14),
    "mixtral-window": lambda: MixtralConfig(
        **SIZES,
        num_local_experts=4,
        num_experts_per_tok=1,
        sliding_window=7,
        head_dim=8,
        tie_word_embeddings=True,
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SIZES,
        head_dim=14,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
    ),
    # Weights as the router gives them.
    "qwen3-moe-dense-layers": lambda: Qwen3MoeConfig(
        **SIZES | {"num_hidden_layers": 5},
        num_experts=7,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[0, 3],
        attention_bias=True,
        tie_word_embeddings=True,
    ),
}
