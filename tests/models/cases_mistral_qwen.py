"""Mistral, Qwen, SmolLM3 and Granite in small awkward sizes: name of the case -> transformers' configuration."""

from __future__ import annotations

from collections.abc import Callable

from cases_llama import SIZES
from transformers import (
    GraniteConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

GRANITE = {
    "embedding_multiplier": 1.75,
    "attention_multiplier": 0.21,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Windows are shorter than every text of the tests.
CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=7),
    "mistral-no-window": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral-nemo": lambda: MistralConfig(
        **SIZES, sliding_window=None, head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "mistral-tied": lambda: MistralConfig(**SIZES, sliding_window=9, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2-tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-late-windows": lambda: Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen2-listed-windows": lambda: Qwen2Config(
        **SIZES,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2.5-yarn": lambda: Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=14),
    "qwen3-tied": lambda: Qwen3Config(**SIZES, head_dim=12, tie_word_embeddings=True),
    "qwen3-biases-windows": lambda: Qwen3Config(
        **SIZES,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
    ),
    "smollm3": lambda: SmolLM3Config(
        **SIZES | {"num_hidden_layers": 4}, pad_token_id=None, tie_word_embeddings=True
    ),
    "smollm3-listed": lambda: SmolLM3Config(
        **SIZES,
        pad_token_id=None,
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        rope_parameters=YARN,
    ),
    "granite": lambda: GraniteConfig(**SIZES, **GRANITE),
    "granite-tied-biases": lambda: GraniteConfig(
        **SIZES, **GRANITE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
}
