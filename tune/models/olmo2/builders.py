"""OLMo 2 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.olmo2.family import OLMO2
from tune.modules import DecoderConfig, TransformerDecoder

_7B = DecoderConfig(
    vocab_size=100_352,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=4096,
    norm_eps=1e-6,
    rope_base=500_000.0,
    qk_norm="width",
    norm_placement="post",
)
# arXiv:2501.00656, table 3, with the vocabulary of the published checkpoints, padded to a multiple of 128.
_SIZES = {
    "1b": replace(_7B, num_layers=16, num_heads=16, num_kv_heads=16, embed_dim=2048, intermediate_dim=8192),
    "7b": _7B,
    "13b": replace(
        _7B, num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824
    ),
    "32b": replace(_7B, num_layers=64, num_heads=40, num_kv_heads=8, embed_dim=5120, intermediate_dim=27_648),
}


def olmo2_1b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return OLMo 2 1B, randomly initialised: 16 layers, width 2048, 4096 positions."""
    return _build("1b", attn_dropout)


def olmo2_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return OLMo 2 7B, randomly initialised: 32 layers, width 4096, 4096 positions."""
    return _build("7b", attn_dropout)


def olmo2_13b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return OLMo 2 13B, randomly initialised: 40 layers, width 5120, 4096 positions."""
    return _build("13b", attn_dropout)


def olmo2_32b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return OLMo 2 32B, randomly initialised: 64 layers, width 5120, 8 key heads, 4096 positions."""
    return _build("32b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), OLMO2)
