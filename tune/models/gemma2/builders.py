"""Gemma 2 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

import math
from dataclasses import replace

from tune.models.gemma2.family import GEMMA2
from tune.modules import DecoderConfig, TransformerDecoder


def gemma2(
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
    hidden_capping_value: float = 50.0,
    final_capping_value: float = 30.0,
    sliding_window_size: int = 4096,
    query_pre_attn_scalar: int | None = None,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma 2's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks; the first, third, ... see no further than the window.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        hidden_capping_value: bound of the attention scores.
        final_capping_value: bound of the logits.
        sliding_window_size: keys a query sees in layers with a window.
        query_pre_attn_scalar: scores are divided by its root; None: `head_dim`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    scalar = head_dim if query_pre_attn_scalar is None else query_pre_attn_scalar
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
        attn_scale=max(scalar, 1) ** -0.5,
        attn_softcap=hidden_capping_value,
        sliding_window=sliding_window_size,
        sliding_layers=tuple(range(0, num_layers, 2)),
        activation="gelu_tanh",
        norm_placement="both",
        norm_offset=1.0,
        embed_scale=math.sqrt(max(embed_dim, 1)),
        final_softcap=final_capping_value,
    )
    return TransformerDecoder(config, GEMMA2)


_2B = DecoderConfig(
    vocab_size=256_000,
    num_layers=26,
    num_heads=8,
    num_kv_heads=4,
    embed_dim=2304,
    head_dim=256,
    intermediate_dim=9216,
    max_seq_len=8192,
    norm_eps=1e-6,
    tie_word_embeddings=True,
    attn_scale=256**-0.5,
    attn_softcap=50.0,
    sliding_window=4096,
    sliding_layers=tuple(range(0, 26, 2)),
    activation="gelu_tanh",
    norm_placement="both",
    norm_offset=1.0,
    embed_scale=math.sqrt(2304),
    final_softcap=30.0,
)
# arXiv:2408.00118, table 1 (its feed-forward widths count gate and value together); 27B divides its scores by the
# root of width over heads.  # google/gemma_pytorch, config.py
_SIZES = {
    "2b": _2B,
    "9b": replace(
        _2B,
        num_layers=42,
        num_heads=16,
        num_kv_heads=8,
        embed_dim=3584,
        intermediate_dim=14_336,
        sliding_layers=tuple(range(0, 42, 2)),
        embed_scale=math.sqrt(3584),
    ),
    "27b": replace(
        _2B,
        num_layers=46,
        num_heads=32,
        num_kv_heads=16,
        embed_dim=4608,
        head_dim=128,
        intermediate_dim=36_864,
        attn_scale=144**-0.5,
        sliding_layers=tuple(range(0, 46, 2)),
        embed_scale=math.sqrt(4608),
    ),
}


def gemma2_2b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 2 2B, randomly initialised: 26 layers, width 2304, windows of 4096, 8192 positions."""
    return _build("2b", attn_dropout)


def gemma2_9b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 2 9B, randomly initialised: 42 layers, width 3584, windows of 4096, 8192 positions."""
    return _build("9b", attn_dropout)


def gemma2_27b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 2 27B, randomly initialised: 46 layers, width 4608, windows of 4096, 8192 positions."""
    return _build("27b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), GEMMA2)
