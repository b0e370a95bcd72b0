"""SmolLM3. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.smollm3.family import SMOLLM3
from tune.modules import DecoderConfig, TransformerDecoder

# HuggingFaceTB/SmolLM3-3B, config.json; every fourth layer has no positions.
_3B = DecoderConfig(
    vocab_size=128_256,
    num_layers=36,
    num_heads=16,
    num_kv_heads=4,
    embed_dim=2048,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=65_536,
    norm_eps=1e-6,
    rope_base=5_000_000.0,
    tie_word_embeddings=True,
    nope_layers=tuple(range(3, 36, 4)),
)


def smollm3_3b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return SmolLM3 3B, randomly initialised: 36 layers, width 2048, 65536 positions, tied."""
    return TransformerDecoder(replace(_3B, attn_dropout=attn_dropout), SMOLLM3)
