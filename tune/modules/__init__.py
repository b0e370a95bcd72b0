"""Parts of a model: the decoder, its layers, its losses."""

from __future__ import annotations

from .attention import SelfAttention
from .config import DecoderConfig
from .decoder import DecoderBlock, TransformerDecoder
from .feed_forward import FeedForward
from .flops import flops_per_token
from .kv_cache import KVCache
from .norm import RMSNorm
from .rope import RotaryEmbedding, apply_rotary

__all__ = [
    "DecoderBlock",
    "DecoderConfig",
    "FeedForward",
    "KVCache",
    "RMSNorm",
    "RotaryEmbedding",
    "SelfAttention",
    "TransformerDecoder",
    "apply_rotary",
    "flops_per_token",
]
