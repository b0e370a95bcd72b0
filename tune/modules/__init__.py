"""Parts of a model: the decoder, its layers, its losses."""

from __future__ import annotations

from tune.modules.attention import SelfAttention
from tune.modules.config import DecoderConfig
from tune.modules.decoder import DecoderBlock, TransformerDecoder
from tune.modules.family import Family, Layout, WeightRule
from tune.modules.feed_forward import FeedForward
from tune.modules.flops import flops_per_token
from tune.modules.kv_cache import KVCache
from tune.modules.norm import RMSNorm
from tune.modules.rope import RotaryEmbedding, apply_rotary

__all__ = [
    "DecoderBlock",
    "DecoderConfig",
    "Family",
    "FeedForward",
    "KVCache",
    "Layout",
    "RMSNorm",
    "RotaryEmbedding",
    "SelfAttention",
    "TransformerDecoder",
    "WeightRule",
    "apply_rotary",
    "flops_per_token",
]
