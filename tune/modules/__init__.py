"""Parts of a model: the decoder, its layers, its losses."""

from __future__ import annotations

from tune.modules.attention import SelfAttention
from tune.modules.block import DecoderBlock
from tune.modules.clamped_swiglu import ClampedSwiGLU
from tune.modules.config import DecoderConfig
from tune.modules.decoder import TransformerDecoder
from tune.modules.experts import ExpertLinear, Experts
from tune.modules.family import Family, Layout, OuterModel, WeightRule
from tune.modules.feed_forward import FeedForward
from tune.modules.flops import flops_per_token
from tune.modules.gated_delta_config import GatedDeltaConfig
from tune.modules.kv_cache import KVCache
from tune.modules.layer_config import FullAttentionConfig, PerLayerInputConfig, SharedKVConfig
from tune.modules.layer_scale import LayerScale
from tune.modules.moe import MixtureOfExperts
from tune.modules.moe_config import MoEConfig
from tune.modules.norm import RMSNorm
from tune.modules.rope import RotaryEmbedding, apply_rotary
from tune.modules.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    QueryScaling,
    RopeScaling,
    YarnScaling,
)
from tune.modules.short_conv_config import ShortConvConfig
from tune.modules.torchtune_names import GONE, HERE
from tune.utils.torchtune_names import offer_names

__all__ = [
    "ClampedSwiGLU",
    "DecoderBlock",
    "DecoderConfig",
    "DynamicScaling",
    "ExpertLinear",
    "Experts",
    "Family",
    "FeedForward",
    "FullAttentionConfig",
    "GatedDeltaConfig",
    "KVCache",
    "LayerScale",
    "Layout",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MixtureOfExperts",
    "MoEConfig",
    "OuterModel",
    "PerLayerInputConfig",
    "ProportionalScaling",
    "QueryScaling",
    "RMSNorm",
    "RopeScaling",
    "RotaryEmbedding",
    "SelfAttention",
    "SharedKVConfig",
    "ShortConvConfig",
    "TransformerDecoder",
    "WeightRule",
    "YarnScaling",
    "apply_rotary",
    "flops_per_token",
]

offer_names(__name__, HERE, GONE)
