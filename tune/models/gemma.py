"""Gemma: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout, torchtune_layout
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.tokenizers import BaseTokenizer, with_family_format


def gemma_constants(embed_dim: int) -> dict[str, Any]:
    """Return what every Gemma has by design: scaled embeddings, tied, norms around one, a gelu gate."""
    return {
        "tie_word_embeddings": True,
        "activation": "gelu_tanh",
        "norm_offset": 1.0,
        "embed_scale": math.sqrt(max(embed_dim, 1)),
    }


def read_gemma(fields: ConfigFields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all Gemmas have in common: scaled embeddings, norms around one, a gelu gate.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
    """
    # Gemma's first files say "gelu" and mean its tanh form.  # transformers, GemmaConfig
    fields.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", False)
    fields.ignore(("cache_implementation",))
    return {
        **gemma_constants(sizes["embed_dim"]),
        **sizes,
        "attn_bias": "all" if fields.flag("attention_bias", False) else "none",
    }


def write_gemma(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields that all Gemmas have in common, without those of rotary positions and of the gate."""
    return {
        **write_sizes(config),
        "attention_bias": config.attn_bias == "all",
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=8192, norm_eps=1e-6, head_dim=256, num_kv_heads=16, tied=True)
    arguments = {**read_gemma(fields, sizes), **read_rope(fields, sizes)}
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_gemma(config), **write_rope(config), "hidden_act": "gelu_pytorch_tanh"}


_HF = hf_layout()

GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    classifier="GemmaForSequenceClassification",
    hf=_HF,
    # torchtune, models/gemma/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=True),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def gemma(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 10_000.0,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.

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
        attn_dropout=attn_dropout,
        **gemma_constants(embed_dim),
    )
    return TransformerDecoder(config, GEMMA)


def _sizes(embed_dim: int, **others: Any) -> DecoderConfig:
    # arXiv:2403.08295, table 1 (its feed-forward widths count gate and value together).
    return DecoderConfig(
        vocab_size=256_000,
        embed_dim=embed_dim,
        head_dim=256,
        max_seq_len=8192,
        norm_eps=1e-6,
        **others,
        **gemma_constants(embed_dim),
    )


_2B = _sizes(2048, num_layers=18, num_heads=8, num_kv_heads=1, intermediate_dim=16_384)
_7B = _sizes(3072, num_layers=28, num_heads=16, num_kv_heads=16, intermediate_dim=24_576)

gemma_2b = ModelBuilder(GEMMA, _2B)
gemma_7b = ModelBuilder(GEMMA, _7B)

lora_gemma = LoRABuilder(gemma)
lora_gemma_2b = LoRABuilder(gemma_2b)
lora_gemma_7b = LoRABuilder(gemma_7b)
qlora_gemma_2b = LoRABuilder(gemma_2b, quantize_base=True)
qlora_gemma_7b = LoRABuilder(gemma_7b, quantize_base=True)


def gemma_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Gemma checkpoint; prompts and answers are written plainly.

    Args:
        path: its tokenizer.model or tokenizer.json, or the directory that holds one.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    tokenizer = tokenizer_at(path, max_seq_len, prompt_template, add_tokens, add_special_tokens)
    return with_family_format(tokenizer, "plain")


GemmaTokenizer = gemma_tokenizer
