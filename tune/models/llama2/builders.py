"""Llama 2 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tune.errors import ConfigError
from tune.models.llama2.family import LLAMA
from tune.modules import DecoderConfig, TransformerDecoder

_COMMON = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=4096,
)

# arXiv:2307.09288, table 1, with the intermediate sizes of the published checkpoints.
LLAMA2_SIZES = {
    "7b": _COMMON,
    "13b": replace(
        _COMMON, num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824
    ),
    "70b": replace(
        _COMMON, num_layers=80, num_heads=64, num_kv_heads=8, embed_dim=8192, intermediate_dim=28_672
    ),
}


def llama2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    max_seq_len: int,
    num_kv_heads: int | None = None,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
    rope_base: float = 10_000.0,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 2's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        embed_dim: width.
        max_seq_len: positions it is trained for.
        num_kv_heads: key and value heads; None: as many as query heads.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        attn_dropout: dropout on attention weights while training.
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
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )
    return TransformerDecoder(config, LLAMA)


def llama2_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 2 7B, randomly initialised: 32 layers, width 4096, 4096 positions."""
    return _build("7b", attn_dropout)


def llama2_13b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 2 13B, randomly initialised: 40 layers, width 5120, 4096 positions."""
    return _build("13b", attn_dropout)


def llama2_70b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 2 70B, randomly initialised: 80 layers, width 8192, 8 key heads, 4096 positions."""
    return _build("70b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(LLAMA2_SIZES[size], attn_dropout=attn_dropout), LLAMA)


def sizes_by_argument(
    *,
    num_heads: int,
    num_kv_heads: int | None,
    embed_dim: int,
    intermediate_dim: int | None,
    **others: Any,
) -> DecoderConfig:
    """Return a decoder's description whose heads make up its width, as in most families.

    Args:
        num_heads: query heads.
        num_kv_heads: None: as many as query heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        **others: further arguments of `DecoderConfig`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    if num_heads < 1 or embed_dim % num_heads:
        raise ConfigError(f"embed_dim is {embed_dim}, not a multiple of num_heads {num_heads}")
    return DecoderConfig(
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        embed_dim=embed_dim,
        head_dim=embed_dim // num_heads,
        intermediate_dim=_feed_forward_width(embed_dim) if intermediate_dim is None else intermediate_dim,
        **others,
    )


def _feed_forward_width(embed_dim: int) -> int:
    width = 2 * 4 * embed_dim // 3
    return -(-width // 256) * 256
