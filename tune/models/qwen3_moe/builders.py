"""Qwen3 with experts, by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.qwen3_moe.family import QWEN3_MOE
from tune.modules import DecoderConfig, MoEConfig, TransformerDecoder

# arXiv:2505.09388, table 2, with widths from config.json of the published checkpoints.
_30B = DecoderConfig(
    vocab_size=151_936,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    embed_dim=2048,
    head_dim=128,
    intermediate_dim=6144,
    max_seq_len=40_960,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    qk_norm="head",
    moe=MoEConfig(num_experts=128, experts_per_token=8, intermediate_dim=768),
)
_SIZES = {
    "30b": _30B,
    "235b": replace(
        _30B,
        num_layers=94,
        num_heads=64,
        embed_dim=4096,
        intermediate_dim=12_288,
        moe=MoEConfig(num_experts=128, experts_per_token=8, intermediate_dim=1536),
    ),
}


def qwen3_30b_a3b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 30B-A3B, randomly initialised: 48 layers, width 2048, 8 of 128 experts, 40960 positions."""
    return _build("30b", attn_dropout)


def qwen3_235b_a22b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 235B-A22B, randomly initialised: 94 layers, width 4096, 8 of 128 experts, 40960 positions."""
    return _build("235b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), QWEN3_MOE)
