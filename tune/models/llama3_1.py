"""Llama 3.1: sizes, builders. Its checkpoints are of the Llama family, its tokenizer is Llama 3's."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.llama2 import LLAMA
from tune.models.llama3 import LLAMA3_8B, LLAMA3_70B
from tune.modules import Llama3Scaling, TransformerDecoder


def llama3_1(
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
    scale_factor: float = 8.0,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 3.1's kind in the sizes given.

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
    )
    return TransformerDecoder(config, LLAMA)


# arXiv:2407.21783, table 3; 8 key heads for 405B as in meta-llama/Llama-3.1-405B, config.json.
_8B = replace(LLAMA3_8B, max_seq_len=131_072, rope_scaling=Llama3Scaling(factor=8.0))
LLAMA3_1_70B = replace(LLAMA3_70B, max_seq_len=131_072, rope_scaling=Llama3Scaling(factor=8.0))
_405B = replace(LLAMA3_1_70B, num_layers=126, num_heads=128, embed_dim=16_384, intermediate_dim=53_248)

llama3_1_8b = ModelBuilder(LLAMA, _8B)
llama3_1_70b = ModelBuilder(LLAMA, LLAMA3_1_70B)
llama3_1_405b = ModelBuilder(LLAMA, _405B)

lora_llama3_1 = LoRABuilder(llama3_1)
lora_llama3_1_8b = LoRABuilder(llama3_1_8b)
lora_llama3_1_70b = LoRABuilder(llama3_1_70b)
lora_llama3_1_405b = LoRABuilder(llama3_1_405b)
qlora_llama3_1_8b = LoRABuilder(llama3_1_8b, quantize_base=True)
qlora_llama3_1_70b = LoRABuilder(llama3_1_70b, quantize_base=True)
qlora_llama3_1_405b = LoRABuilder(llama3_1_405b, quantize_base=True)
