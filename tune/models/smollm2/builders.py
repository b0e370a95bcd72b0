"""SmolLM2 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.llama2.family import LLAMA
from tune.modules import DecoderConfig, TransformerDecoder

_135M = DecoderConfig(
    vocab_size=49_152,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    embed_dim=576,
    head_dim=64,
    intermediate_dim=1536,
    max_seq_len=8192,
    rope_base=100_000.0,
    tie_word_embeddings=True,
)
# HuggingFaceTB/SmolLM2-135M, -360M and -1.7B, config.json: Llamas by architecture.
_SIZES = {
    "135m": _135M,
    "360m": replace(_135M, num_layers=32, num_heads=15, num_kv_heads=5, embed_dim=960, intermediate_dim=2560),
    "1_7b": replace(
        _135M,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        embed_dim=2048,
        intermediate_dim=8192,
        rope_base=130_000.0,
    ),
}


def smollm2_135m(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return SmolLM2 135M, randomly initialised: 30 layers, width 576, 8192 positions, tied."""
    return _build("135m", attn_dropout)


def smollm2_360m(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return SmolLM2 360M, randomly initialised: 32 layers, width 960, 8192 positions, tied."""
    return _build("360m", attn_dropout)


def smollm2_1_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return SmolLM2 1.7B, randomly initialised: 24 layers, width 2048, 8192 positions, tied."""
    return _build("1_7b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), LLAMA)
