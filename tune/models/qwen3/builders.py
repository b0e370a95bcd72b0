"""Qwen3 by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.qwen3.family import QWEN3
from tune.modules import DecoderConfig, TransformerDecoder

_8B = DecoderConfig(
    vocab_size=151_936,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=12_288,
    max_seq_len=40_960,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    qk_norm="head",
)
_1_7B = replace(
    _8B, num_layers=28, num_heads=16, embed_dim=2048, intermediate_dim=6144, tie_word_embeddings=True
)
_CHAT = {
    "0_6b": replace(_1_7B, embed_dim=1024, intermediate_dim=3072),
    "1_7b": _1_7B,
    "4b": replace(_8B, embed_dim=2560, intermediate_dim=9728, tie_word_embeddings=True),
    "8b": _8B,
    "14b": replace(_8B, num_layers=40, num_heads=40, embed_dim=5120, intermediate_dim=17_408),
    "32b": replace(_8B, num_layers=64, num_heads=64, embed_dim=5120, intermediate_dim=25_600),
}
# arXiv:2505.09388, table 1; widths and positions as in Qwen/Qwen3-0.6B to -32B and their base versions, config.json.
_SIZES = {**_CHAT, **{f"{size}_base": replace(sizes, max_seq_len=32_768) for size, sizes in _CHAT.items()}}


def qwen3(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    head_dim: int = 128,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 1_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen3's dense kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        head_dim: width of a head.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = DecoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_dropout=attn_dropout,
        qk_norm="head",
    )
    return TransformerDecoder(config, QWEN3)


def qwen3_0_6b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen3 0.6B, randomly initialised: 28 layers, width 1024, 32768 positions, tied."""
    return _build("0_6b_base", attn_dropout)


def qwen3_0_6b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 0.6B, randomly initialised: 28 layers, width 1024, 40960 positions, tied."""
    return _build("0_6b", attn_dropout)


def qwen3_1_7b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen3 1.7B, randomly initialised: 28 layers, width 2048, 32768 positions, tied."""
    return _build("1_7b_base", attn_dropout)


def qwen3_1_7b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 1.7B, randomly initialised: 28 layers, width 2048, 40960 positions, tied."""
    return _build("1_7b", attn_dropout)


def qwen3_4b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen3 4B, randomly initialised: 36 layers, width 2560, 32768 positions, tied."""
    return _build("4b_base", attn_dropout)


def qwen3_4b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 4B, randomly initialised: 36 layers, width 2560, 40960 positions, tied."""
    return _build("4b", attn_dropout)


def qwen3_8b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen3 8B, randomly initialised: 36 layers, width 4096, 32768 positions."""
    return _build("8b_base", attn_dropout)


def qwen3_8b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 8B, randomly initialised: 36 layers, width 4096, 40960 positions."""
    return _build("8b", attn_dropout)


def qwen3_14b_base(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return base Qwen3 14B, randomly initialised: 40 layers, width 5120, 32768 positions."""
    return _build("14b_base", attn_dropout)


def qwen3_14b_instruct(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 14B, randomly initialised: 40 layers, width 5120, 40960 positions."""
    return _build("14b", attn_dropout)


def qwen3_32b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 32B, randomly initialised: 64 layers, width 5120, 40960 positions."""
    return _build("32b", attn_dropout)


def qwen3_0_6b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 0.6B, randomly initialised, as `qwen3_0_6b_instruct`: the hub's name has no suffix."""
    return _build("0_6b", attn_dropout)


def qwen3_1_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 1.7B, randomly initialised, as `qwen3_1_7b_instruct`: the hub's name has no suffix."""
    return _build("1_7b", attn_dropout)


def qwen3_4b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 4B, randomly initialised, as `qwen3_4b_instruct`: the hub's name has no suffix."""
    return _build("4b", attn_dropout)


def qwen3_8b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 8B, randomly initialised, as `qwen3_8b_instruct`: the hub's name has no suffix."""
    return _build("8b", attn_dropout)


def qwen3_14b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Qwen3 14B, randomly initialised, as `qwen3_14b_instruct`: the hub's name has no suffix."""
    return _build("14b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), QWEN3)
