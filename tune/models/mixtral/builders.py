"""Mixtral by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.mixtral.family import MIXTRAL
from tune.modules import DecoderConfig, MoEConfig, TransformerDecoder

# arXiv:2401.04088, table 1
_8X7B = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=32_768,
    rope_base=1_000_000.0,
    moe=MoEConfig(num_experts=8, experts_per_token=2, intermediate_dim=14_336),
)
_SIZES = {
    "8x7b": _8X7B,
    # config.json of mistralai/Mixtral-8x22B-v0.1; the Instruct checkpoint has a vocabulary of 32768
    "8x22b": replace(
        _8X7B,
        num_layers=56,
        num_heads=48,
        embed_dim=6144,
        intermediate_dim=16_384,
        max_seq_len=65_536,
        moe=MoEConfig(num_experts=8, experts_per_token=2, intermediate_dim=16_384),
    ),
}


def mixtral_8x7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mixtral 8x7B, randomly initialised: 32 layers, width 4096, 2 of 8 experts, 32768 positions."""
    return _build("8x7b", attn_dropout)


def mixtral_8x22b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mixtral 8x22B, randomly initialised: 56 layers, width 6144, 2 of 8 experts, 65536 positions."""
    return _build("8x22b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), MIXTRAL)
