"""Qwen2.5 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.qwen2.builders import QWEN2_SIZES
from tune.models.qwen2.family import QWEN2
from tune.modules import TransformerDecoder

_14B = replace(
    QWEN2_SIZES["7b"], num_layers=48, num_heads=40, num_kv_heads=8, embed_dim=5120, intermediate_dim=13_824
)
_INSTRUCT = {
    **QWEN2_SIZES,
    "3b": replace(QWEN2_SIZES["1_5b"], num_layers=36, num_heads=16, embed_dim=2048, intermediate_dim=11_008),
    "14b": _14B,
    "32b": replace(_14B, num_layers=64, intermediate_dim=27_648),
}
# arXiv:2412.15115, table 1; vocabularies (padded), ties, positions and norm_eps as in Qwen/Qwen2.5-0.5B to -72B and
# their instruct versions, config.json. Base and instruct differ in positions and, from 14B on, in norm_eps.
_SIZES = {
    **_INSTRUCT,
    **{
        f"{size}_base": replace(
            _INSTRUCT[size], max_seq_len=131_072, norm_eps=1e-5 if size in ("14b", "32b", "72b") else 1e-6
        )
        for size in ("1_5b", "7b", "14b", "32b", "72b")
    },
}


def qwen2_5_0_5b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 0.5B, base or instruct, randomly initialised: 24 layers, width 896, 32768 positions, tied."""
    return _build("0_5b", attn_dropout)


def qwen2_5_1_5b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 1.5B, randomly initialised: 28 layers, width 1536, 131072 positions, tied."""
    return _build("1_5b_base", attn_dropout)


def qwen2_5_1_5b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 1.5B Instruct, randomly initialised: 28 layers, width 1536, 32768 positions, tied."""
    return _build("1_5b", attn_dropout)


def qwen2_5_3b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 3B, base or instruct, randomly initialised: 36 layers, width 2048, 32768 positions, tied."""
    return _build("3b", attn_dropout)


def qwen2_5_7b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 7B, randomly initialised: 28 layers, width 3584, 131072 positions."""
    return _build("7b_base", attn_dropout)


def qwen2_5_7b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 7B Instruct, randomly initialised: 28 layers, width 3584, 32768 positions."""
    return _build("7b", attn_dropout)


def qwen2_5_14b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 14B, randomly initialised: 48 layers, width 5120, 131072 positions."""
    return _build("14b_base", attn_dropout)


def qwen2_5_14b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 14B Instruct, randomly initialised: 48 layers, width 5120, 32768 positions."""
    return _build("14b", attn_dropout)


def qwen2_5_32b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 32B, randomly initialised: 64 layers, width 5120, 131072 positions."""
    return _build("32b_base", attn_dropout)


def qwen2_5_32b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 32B Instruct, randomly initialised: 64 layers, width 5120, 32768 positions."""
    return _build("32b", attn_dropout)


def qwen2_5_72b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 72B, randomly initialised: 80 layers, width 8192, 131072 positions."""
    return _build("72b_base", attn_dropout)


def qwen2_5_72b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen2.5 72B Instruct, randomly initialised: 80 layers, width 8192, 32768 positions."""
    return _build("72b", attn_dropout)


def qwen2_5_1_5b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 1.5B, randomly initialised, as `qwen2_5_1_5b_base`: the hub's name without a suffix."""
    return _build("1_5b_base", attn_dropout)


def qwen2_5_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 7B, randomly initialised, as `qwen2_5_7b_base`: the hub's name without a suffix."""
    return _build("7b_base", attn_dropout)


def qwen2_5_14b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 14B, randomly initialised, as `qwen2_5_14b_base`: the hub's name without a suffix."""
    return _build("14b_base", attn_dropout)


def qwen2_5_32b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 32B, randomly initialised, as `qwen2_5_32b_base`: the hub's name without a suffix."""
    return _build("32b_base", attn_dropout)


def qwen2_5_72b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen2.5 72B, randomly initialised, as `qwen2_5_72b_base`: the hub's name without a suffix."""
    return _build("72b_base", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), QWEN2)
