"""Llama 3: sizes, builders, tokenizer. Its checkpoints are of the Llama family."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument, tokenizer_at
from tune.models.llama2 import LLAMA
from tune.modules import DecoderConfig, TransformerDecoder
from tune.tokenizers import BaseTokenizer, with_family_format


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


def llama3_tokenizer(
    path: str,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Llama 3 checkpoint; its datasets are written in its turns (`llama3`).

    Args:
        path: its tokenizer.model or tokenizer.json, or the directory that holds one.
        special_tokens_path: its tokenizer.json; it holds the vocabulary, too, so it is read in place of `path`.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: texts around messages, inside of the turns; see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    tokenizer = tokenizer_at(
        special_tokens_path or path, max_seq_len, prompt_template, add_tokens, add_special_tokens
    )
    return with_family_format(tokenizer, "llama3")


Llama3Tokenizer = llama3_tokenizer
