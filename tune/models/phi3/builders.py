"""Phi-3 by size. Builders use torch's current default device and dtype.

The variants for 128k positions, Phi-3.5-mini among them, are built by `model: auto` from their own config.json, which
lists their rotary frequencies.
"""

from __future__ import annotations

from dataclasses import replace

from tune.models.phi3.family import PHI3
from tune.modules import DecoderConfig, TransformerDecoder


def phi3(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = 10_000.0,
    sliding_window_size: int | None = None,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Phi-3's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        sliding_window_size: keys a query sees; None: all before it.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = DecoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=embed_dim // max(num_heads, 1),
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_dropout=attn_dropout,
        sliding_window=sliding_window_size,
        sliding_layers=() if sliding_window_size is None else tuple(range(num_layers)),
    )
    return TransformerDecoder(config, PHI3)


# arXiv:2404.14219, 2, with vocabulary and windows of the published checkpoints for 4k positions.
_MINI = DecoderConfig(
    vocab_size=32_064,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=3072,
    head_dim=96,
    intermediate_dim=8192,
    max_seq_len=4096,
    sliding_window=2047,
    sliding_layers=tuple(range(32)),
)
_SIZES = {
    "mini": _MINI,
    "medium": replace(
        _MINI,
        num_layers=40,
        num_heads=40,
        num_kv_heads=10,
        embed_dim=5120,
        head_dim=128,
        intermediate_dim=17_920,
        sliding_layers=tuple(range(40)),
    ),
}


def phi3_mini(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Phi-3 mini 4k (3.8B), randomly initialised: 32 layers, width 3072, windows of 2047."""
    return _build("mini", attn_dropout)


def phi3_medium(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Phi-3 medium 4k (14B), randomly initialised: 40 layers, width 5120, windows of 2047."""
    return _build("medium", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), PHI3)
