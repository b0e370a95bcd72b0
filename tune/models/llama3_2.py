"""Llama 3.2, the text models: sizes, builders. Its checkpoints are of the Llama family, its tokenizer is Llama 3's."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.llama2 import LLAMA
from tune.modules import DecoderConfig, Llama3Scaling, TransformerDecoder


def llama3_2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    rope_base: float = 500_000.0,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
    scale_factor: float = 32.0,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 3.2's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        num_kv_heads: key and value heads.
        embed_dim: width.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        rope_base: base of the rotary frequencies.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        norm_eps: added to the mean square in norms.
        scale_factor: what slow rotary frequencies are divided by.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = sizes_by_argument(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        max_seq_len=max_seq_len,
        intermediate_dim=intermediate_dim,
        attn_dropout=attn_dropout,
        rope_base=rope_base,
        norm_eps=norm_eps,
        rope_scaling=Llama3Scaling(factor=scale_factor),
        tie_word_embeddings=tie_word_embeddings,
    )
    return TransformerDecoder(config, LLAMA)


# meta-llama/Llama-3.2-1B and -3B, config.json
_1B = DecoderConfig(
    vocab_size=128_256,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=2048,
    head_dim=64,
    intermediate_dim=8192,
    max_seq_len=131_072,
    rope_base=500_000.0,
    rope_scaling=Llama3Scaling(factor=32.0),
    tie_word_embeddings=True,
)
_3B = replace(_1B, num_layers=28, num_heads=24, embed_dim=3072, head_dim=128)

llama3_2_1b = ModelBuilder(LLAMA, _1B)
llama3_2_3b = ModelBuilder(LLAMA, _3B)

lora_llama3_2 = LoRABuilder(llama3_2)
lora_llama3_2_1b = LoRABuilder(llama3_2_1b)
lora_llama3_2_3b = LoRABuilder(llama3_2_3b)
qlora_llama3_2_1b = LoRABuilder(llama3_2_1b, quantize_base=True)
qlora_llama3_2_3b = LoRABuilder(llama3_2_3b, quantize_base=True)
