"""Llama 3: sizes, builders, tokenizer. Its checkpoints are of the Llama family."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.llama2 import LLAMA
from tune.models.tokenizer import tokenizer_beside_special_tokens
from tune.modules import DecoderConfig, TransformerDecoder


def llama3(
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
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 3's kind in the sizes given.

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
    )
    return TransformerDecoder(config, LLAMA)


# arXiv:2407.21783, table 3; 8192 positions as in meta-llama/Meta-Llama-3-8B and -70B, config.json.
LLAMA3_8B = DecoderConfig(
    vocab_size=128_256,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=8192,
    rope_base=500_000.0,
)
LLAMA3_70B = replace(LLAMA3_8B, num_layers=80, num_heads=64, embed_dim=8192, intermediate_dim=28_672)

llama3_8b = ModelBuilder(LLAMA, LLAMA3_8B)
llama3_70b = ModelBuilder(LLAMA, LLAMA3_70B)

lora_llama3 = LoRABuilder(llama3)
lora_llama3_8b = LoRABuilder(llama3_8b)
lora_llama3_70b = LoRABuilder(llama3_70b)
qlora_llama3_8b = LoRABuilder(llama3_8b, quantize_base=True)
qlora_llama3_70b = LoRABuilder(llama3_70b, quantize_base=True)

llama3_tokenizer = tokenizer_beside_special_tokens
Llama3Tokenizer = llama3_tokenizer
