"""Qwen2 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.llama2.builders import sizes_by_argument
from tune.models.qwen2.family import QWEN2
from tune.modules import DecoderConfig, TransformerDecoder

_0_5B = DecoderConfig(
    vocab_size=151_936,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    embed_dim=896,
    head_dim=64,
    intermediate_dim=4864,
    max_seq_len=32_768,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    attn_bias="qkv",
    tie_word_embeddings=True,
)
# arXiv:2407.10671, table 1; vocabularies (padded) and ties as in Qwen/Qwen2-0.5B to -72B, config.json. The positions
# are those of the instruct versions; the base versions' files say 131072. Only base 72B's norm_eps is 1e-5.
QWEN2_SIZES = {
    "0_5b": _0_5B,
    "1_5b": replace(_0_5B, num_layers=28, num_heads=12, embed_dim=1536, head_dim=128, intermediate_dim=8960),
    "7b": replace(
        _0_5B,
        vocab_size=152_064,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        embed_dim=3584,
        head_dim=128,
        intermediate_dim=18_944,
        tie_word_embeddings=False,
    ),
    "72b": replace(
        _0_5B,
        vocab_size=152_064,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        embed_dim=8192,
        head_dim=128,
        intermediate_dim=29_568,
        tie_word_embeddings=False,
    ),
}
_SIZES = {**QWEN2_SIZES, "72b_base": replace(QWEN2_SIZES["72b"], norm_eps=1e-5)}


def qwen2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = 1_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen2's kind in the sizes given.

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
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = sizes_by_argument(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        max_seq_len=max_seq_len,
        intermediate_dim=intermediate_dim,
        attn_dropout=attn_dropout,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_bias="qkv",
    )
    return TransformerDecoder(config, QWEN2)


def qwen2_0_5b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2 0.5B, randomly initialised: 24 layers, width 896, 32768 positions, tied."""
    return _build("0_5b", attn_dropout)


def qwen2_1_5b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2 1.5B, randomly initialised: 28 layers, width 1536, 32768 positions, tied."""
    return _build("1_5b", attn_dropout)


def qwen2_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2 7B, randomly initialised: 28 layers, width 3584, 32768 positions."""
    return _build("7b", attn_dropout)


def qwen2_72b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2 72B, randomly initialised: 80 layers, width 8192, 32768 positions."""
    return _build("72b_base", attn_dropout)


def qwen2_72b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2 72B Instruct, randomly initialised: as base, with a smaller eps in its norms."""
    return _build("72b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), QWEN2)
