"""Llama 3.1 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.llama2.builders import sizes_by_argument
from tune.models.llama2.family import LLAMA
from tune.models.llama3.builders import LLAMA3_8B, LLAMA3_70B
from tune.modules import DecoderConfig, Llama3Scaling, TransformerDecoder

_LONG = Llama3Scaling(factor=8.0)
LLAMA3_1_70B: DecoderConfig = replace(LLAMA3_70B, max_seq_len=131_072, rope_scaling=_LONG)
# arXiv:2407.21783, table 3; 8 key heads for 405B as in meta-llama/Llama-3.1-405B, config.json.
_SIZES = {
    "8b": replace(LLAMA3_8B, max_seq_len=131_072, rope_scaling=_LONG),
    "70b": LLAMA3_1_70B,
    "405b": replace(LLAMA3_1_70B, num_layers=126, num_heads=128, embed_dim=16_384, intermediate_dim=53_248),
}


def llama3_1(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    rope_base: float = 500_000.0,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
    scale_factor: float = 8.0,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 3.1's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        num_kv_heads: key and value heads.
        embed_dim: width.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        rope_base: base of the rotary frequencies.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        norm_eps: added to the mean square in norms.
        scale_factor: what slow rotary frequencies are divided by.

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
        rope_base=rope_base,
        norm_eps=norm_eps,
        rope_scaling=Llama3Scaling(factor=scale_factor),
    )
    return TransformerDecoder(config, LLAMA)


def llama3_1_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 3.1 8B, randomly initialised: 32 layers, width 4096, 131072 positions."""
    return _build("8b", attn_dropout)


def llama3_1_70b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 3.1 70B, randomly initialised: 80 layers, width 8192, 131072 positions."""
    return _build("70b", attn_dropout)


def llama3_1_405b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 3.1 405B, randomly initialised: 126 layers, width 16384, 131072 positions."""
    return _build("405b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), LLAMA)
