"""Granite 3 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.granite.family import GRANITE
from tune.modules import DecoderConfig, TransformerDecoder

_2B = DecoderConfig(
    vocab_size=49_155,
    num_layers=40,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=2048,
    head_dim=64,
    intermediate_dim=8192,
    max_seq_len=4096,
    tie_word_embeddings=True,
    attn_scale=0.015625,
    embed_scale=12.0,
    residual_scale=0.22,
    logit_divisor=8.0,
)
_8B = replace(
    _2B, embed_dim=4096, head_dim=128, intermediate_dim=12_800, attn_scale=0.0078125, logit_divisor=16.0
)
_LONG_2B = replace(_2B, max_seq_len=131_072, rope_base=5_000_000.0)
_LONG_8B = replace(_8B, max_seq_len=131_072, rope_base=10_000_000.0)
# ibm-granite/granite-3.0-2b-instruct to granite-3.3-8b-instruct, config.json; 3.3's instruct versions have four
# entries more, for thinking.
_SIZES = {
    "3_0_2b": _2B,
    "3_0_8b": _8B,
    "3_1_2b": _LONG_2B,
    "3_1_8b": _LONG_8B,
    "3_2_2b": _LONG_2B,
    "3_2_8b": _LONG_8B,
    "3_3_2b": replace(_LONG_2B, vocab_size=49_159),
    "3_3_8b": replace(_LONG_8B, vocab_size=49_159),
}


def granite_3_0_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.0 2B, randomly initialised: 40 layers, width 2048, 4096 positions, tied."""
    return _build("3_0_2b", attn_dropout)


def granite_3_0_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.0 8B, randomly initialised: 40 layers, width 4096, 4096 positions, tied."""
    return _build("3_0_8b", attn_dropout)


def granite_3_1_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.1 2B, randomly initialised: 40 layers, width 2048, 131072 positions, tied."""
    return _build("3_1_2b", attn_dropout)


def granite_3_1_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.1 8B, randomly initialised: 40 layers, width 4096, 131072 positions, tied."""
    return _build("3_1_8b", attn_dropout)


def granite_3_2_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.2 2B, randomly initialised: 40 layers, width 2048, 131072 positions, tied."""
    return _build("3_2_2b", attn_dropout)


def granite_3_2_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.2 8B, randomly initialised: 40 layers, width 4096, 131072 positions, tied."""
    return _build("3_2_8b", attn_dropout)


def granite_3_3_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.3 2B, randomly initialised: 40 layers, width 2048, 131072 positions, tied."""
    return _build("3_3_2b", attn_dropout)


def granite_3_3_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Granite 3.3 8B, randomly initialised: 40 layers, width 4096, 131072 positions, tied."""
    return _build("3_3_8b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), GRANITE)
