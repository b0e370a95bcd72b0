"""Phi-4 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.phi3.family import PHI3, usual_magnitude
from tune.modules import DecoderConfig, LongRopeScaling, TransformerDecoder

# fmt: off
# config.json of microsoft/Phi-4-mini-instruct
_MINI_LONG_FACTORS = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on
_SIZES = {
    # arXiv:2503.01743, 2.1
    "mini": DecoderConfig(
        vocab_size=200_064,
        num_layers=32,
        num_heads=24,
        num_kv_heads=8,
        embed_dim=3072,
        head_dim=128,
        intermediate_dim=8192,
        max_seq_len=131_072,
        tie_word_embeddings=True,
        rotary_dim=96,
        rope_scaling=LongRopeScaling(
            short_factors=(1.0,) * 48,
            long_factors=_MINI_LONG_FACTORS,
            original_max_seq_len=4096,
            magnitude=usual_magnitude(131_072, 4096),
        ),
        sliding_window=262_144,
        sliding_layers=tuple(range(32)),
    ),
    # arXiv:2412.08905, 3
    "14b": DecoderConfig(
        vocab_size=100_352,
        num_layers=40,
        num_heads=40,
        num_kv_heads=10,
        embed_dim=5120,
        head_dim=128,
        intermediate_dim=17_920,
        max_seq_len=16_384,
        rope_base=250_000.0,
    ),
}


def phi4_mini(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Phi-4-mini (3.8B), randomly initialised: 32 layers, width 3072, tied, 131072 positions."""
    return _build("mini", attn_dropout)


def phi4_14b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Phi-4 (14B), randomly initialised: 40 layers, width 5120, 10 key heads, 16384 positions."""
    return _build("14b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), PHI3)
