"""Mistral by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.errors import ConfigError
from tune.models.mistral.family import MISTRAL
from tune.modules import DecoderConfig, TransformerDecoder

_7B = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=32_768,
    sliding_window=4096,
    sliding_layers=tuple(range(32)),
)
_7B_V0_2 = replace(_7B, rope_base=1_000_000.0, sliding_window=None, sliding_layers=())
# arXiv:2310.06825, table 1; mistralai/Mistral-7B-v0.1, -Instruct-v0.2, -v0.3 and Mistral-Nemo-Base-2407, config.json
# (Nemo's first one says 128000 positions, later ones 131072).
_SIZES = {
    "7b": _7B,
    "7b_v0_2": _7B_V0_2,
    "7b_v0_3": replace(_7B_V0_2, vocab_size=32_768),
    "nemo": replace(_7B_V0_2, vocab_size=131_072, num_layers=40, embed_dim=5120, max_seq_len=131_072),
}


def mistral(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = 10_000.0,
    sliding_window: int | None = None,
    head_dim: int | None = None,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Mistral's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        sliding_window: keys a query sees; None: all before it.
        head_dim: width of a head; None: `embed_dim` over `num_heads`.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    if head_dim is None and (num_heads < 1 or embed_dim % num_heads):
        raise ConfigError(f"embed_dim is {embed_dim}, not a multiple of num_heads {num_heads}")
    config = DecoderConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=embed_dim // num_heads if head_dim is None else head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
        sliding_window=sliding_window,
        sliding_layers=() if sliding_window is None else tuple(range(num_layers)),
    )
    return TransformerDecoder(config, MISTRAL)


def mistral_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mistral 7B v0.1, randomly initialised: 32 layers, width 4096, windows of 4096 in 32768 positions."""
    return _build("7b", attn_dropout)


def mistral_7b_v0_2(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mistral 7B v0.2, randomly initialised: as v0.1, without windows and with a larger rotary base."""
    return _build("7b_v0_2", attn_dropout)


def mistral_7b_v0_3(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mistral 7B v0.3, randomly initialised: as v0.2, with 32768 vocabulary entries."""
    return _build("7b_v0_3", attn_dropout)


def mistral_nemo_12b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Mistral Nemo 12B, randomly initialised: 40 layers, width 5120, heads of 128, 131072 positions."""
    return _build("nemo", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), MISTRAL)
