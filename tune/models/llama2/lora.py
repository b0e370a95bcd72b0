"""The builders with adapters."""

from __future__ import annotations

from functools import partial
from typing import Literal

from tune.models.llama2.builders import llama2, llama2_7b, llama2_13b, llama2_70b
from tune.models.lora import LoRABuilder
from tune.modules import TransformerDecoder

lora_llama2_7b = LoRABuilder(llama2_7b)
lora_llama2_13b = LoRABuilder(llama2_13b)
lora_llama2_70b = LoRABuilder(llama2_70b)

qlora_llama2_7b = LoRABuilder(llama2_7b, quantize_base=True)
qlora_llama2_13b = LoRABuilder(llama2_13b, quantize_base=True)
qlora_llama2_70b = LoRABuilder(llama2_70b, quantize_base=True)


def lora_llama2(
    lora_attn_modules: list[Literal["q_proj", "k_proj", "v_proj", "output_proj"]],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    max_seq_len: int,
    num_kv_heads: int | None = None,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
    rope_base: float = 10_000.0,
    attn_dropout: float = 0.0,
    tie_word_embeddings: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    use_rslora: bool = False,
    quantize_base: bool = False,
) -> TransformerDecoder:
    """Return a frozen decoder of Llama 2's kind in the sizes given, with adapters that are trained.

    Sizes as in `llama2`, adapters as in `LoRABuilder`.

    Raises:
        ConfigError: sizes that do not fit together, or adapters that this model cannot have.
    """
    sized = partial(
        llama2,
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        embed_dim=embed_dim,
        max_seq_len=max_seq_len,
        num_kv_heads=num_kv_heads,
        intermediate_dim=intermediate_dim,
        norm_eps=norm_eps,
        rope_base=rope_base,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )
    return LoRABuilder(sized)(
        lora_attn_modules,
        apply_lora_to_mlp,
        apply_lora_to_output,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        use_dora=use_dora,
        use_rslora=use_rslora,
        quantize_base=quantize_base,
    )
