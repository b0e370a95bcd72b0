"""Gemma 3 by size, the text models. Builders use torch's current default device and dtype."""

from __future__ import annotations

import math
from dataclasses import replace

from tune.models.gemma3.family import GEMMA3
from tune.modules import DecoderConfig, LinearScaling, TransformerDecoder


def gemma3(
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
    rope_base: float = 1_000_000.0,
    local_rope_base: float = 10_000.0,
    rope_factor: float = 1.0,
    sliding_window_size: int = 1024,
    query_pre_attn_scalar: int | None = None,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma 3's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks; of each six, the first five see no further than the window.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies in layers without a window.
        local_rope_base: base in layers with one.
        rope_factor: how many positions count as one in layers without a window.
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
        rope_scaling=None if rope_factor == 1.0 else LinearScaling(rope_factor),
        qk_norm="head",
        attn_scale=max(scalar, 1) ** -0.5,
        sliding_window=sliding_window_size,
        sliding_layers=_five_of_six(num_layers),
        local_rope_base=local_rope_base,
        activation="gelu_tanh",
        norm_placement="both",
        norm_offset=1.0,
        embed_scale=math.sqrt(max(embed_dim, 1)),
    )
    return TransformerDecoder(config, GEMMA3)


def _five_of_six(num_layers: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(num_layers) if (layer + 1) % 6)


_4B = DecoderConfig(
    vocab_size=262_208,
    num_layers=34,
    num_heads=8,
    num_kv_heads=4,
    embed_dim=2560,
    head_dim=256,
    intermediate_dim=10_240,
    max_seq_len=131_072,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    tie_word_embeddings=True,
    rope_scaling=LinearScaling(8.0),
    qk_norm="head",
    attn_scale=256**-0.5,
    sliding_window=1024,
    sliding_layers=_five_of_six(34),
    local_rope_base=10_000.0,
    activation="gelu_tanh",
    norm_placement="both",
    norm_offset=1.0,
    embed_scale=math.sqrt(2560),
)
# arXiv:2503.19786, table 1, with widths and heads from google/gemma_pytorch, config.py. The published checkpoints of
# 4B and larger keep 64 rows of the vocabulary for pictures.
_SIZES = {
    "270m": replace(
        _4B,
        vocab_size=262_144,
        num_layers=18,
        num_heads=4,
        num_kv_heads=1,
        embed_dim=640,
        intermediate_dim=2048,
        max_seq_len=32_768,
        rope_scaling=None,
        sliding_window=512,
        sliding_layers=_five_of_six(18),
        embed_scale=math.sqrt(640),
    ),
    "1b": replace(
        _4B,
        vocab_size=262_144,
        num_layers=26,
        num_heads=4,
        num_kv_heads=1,
        embed_dim=1152,
        intermediate_dim=6912,
        max_seq_len=32_768,
        rope_scaling=None,
        sliding_window=512,
        sliding_layers=_five_of_six(26),
        embed_scale=math.sqrt(1152),
    ),
    "4b": _4B,
    "12b": replace(
        _4B,
        num_layers=48,
        num_heads=16,
        num_kv_heads=8,
        embed_dim=3840,
        intermediate_dim=15_360,
        sliding_layers=_five_of_six(48),
        embed_scale=math.sqrt(3840),
    ),
    "27b": replace(
        _4B,
        num_layers=62,
        num_heads=32,
        num_kv_heads=16,
        embed_dim=5376,
        head_dim=128,
        intermediate_dim=21_504,
        attn_scale=168**-0.5,
        sliding_layers=_five_of_six(62),
        embed_scale=math.sqrt(5376),
    ),
}


def gemma3_270m(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 3 270M, randomly initialised: 18 layers, width 640, windows of 512, 32768 positions."""
    return _build("270m", attn_dropout)


def gemma3_1b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Gemma 3 1B, randomly initialised: 26 layers, width 1152, windows of 512, 32768 positions."""
    return _build("1b", attn_dropout)


def gemma3_4b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return the text model of Gemma 3 4B, randomly initialised: 34 layers, width 2560, 131072 positions."""
    return _build("4b", attn_dropout)


def gemma3_12b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return the text model of Gemma 3 12B, randomly initialised: 48 layers, width 3840, 131072 positions."""
    return _build("12b", attn_dropout)


def gemma3_27b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return the text model of Gemma 3 27B, randomly initialised: 62 layers, width 5376, 131072 positions."""
    return _build("27b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), GEMMA3)
