"""Gemma by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

import math
from dataclasses import replace

from tune.models.gemma.family import GEMMA
from tune.modules import DecoderConfig, TransformerDecoder


def gemma(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 10_000.0,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = DecoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=True,
        attn_dropout=attn_dropout,
        activation="gelu_tanh",
        norm_offset=1.0,
        embed_scale=math.sqrt(max(embed_dim, 1)),
    )
    return TransformerDecoder(config, GEMMA)


# arXiv:2403.08295, table 1 (its feed-forward widths count gate and value together).
_2B = DecoderConfig(
    vocab_size=256_000,
    num_layers=18,
    num_heads=8,
    num_kv_heads=1,
    embed_dim=2048,
    head_dim=256,
    intermediate_dim=16_384,
    max_seq_len=8192,
    norm_eps=1e-6,
    tie_word_embeddings=True,
    activation="gelu_tanh",
    norm_offset=1.0,
    embed_scale=math.sqrt(2048),
)
_SIZES = {
    "2b": _2B,
    "7b": replace(
        _2B,
        num_layers=28,
        num_heads=16,
        num_kv_heads=16,
        embed_dim=3072,
        intermediate_dim=24_576,
        embed_scale=math.sqrt(3072),
    ),
}


def gemma_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 2B, randomly initialised: 18 layers, width 2048, 1 key head, 8192 positions."""
    return _build("2b", attn_dropout)


def gemma_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 7B, randomly initialised: 28 layers, width 3072, 8192 positions."""
    return _build("7b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), GEMMA)
