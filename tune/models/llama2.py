"""Llama 2: sizes, builders and tokenizer; how checkpoints of the Llama family name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.data import Llama2ChatTemplate as Llama2ChatTemplate
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import META_LAYOUT, hf_layout, torchtune_layout
from tune.models.meta_params import read_llama_params, write_llama_params
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.tokenizers import BaseTokenizer, SentencePieceTokenizer, with_family_format, with_new_tokens


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    arguments = {**sizes, **read_rope(fields, sizes)}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    arguments["mlp_bias"] = fields.flag("mlp_bias", False)
    fields.expect("hidden_act", "silu")
    fields.expect("rope_interleaved", False)
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "mlp_bias": config.mlp_bias,
    }


_HF = hf_layout()

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    classifier="LlamaForSequenceClassification",
    hf=_HF,
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
    meta=META_LAYOUT,
    # torchtune, models/convert_weights.py: it turns neighbouring channels, as Meta does.
    torchtune=torchtune_layout(_HF, paired=True),
    read_meta_config=read_llama_params,
    write_meta_config=write_llama_params,
)


def llama2(
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
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Llama 2's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        embed_dim: width.
        max_seq_len: positions it is trained for.
        num_kv_heads: key and value heads; None: as many as query heads.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        attn_dropout: dropout on attention weights while training.
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
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
    )
    return TransformerDecoder(config, LLAMA)


# arXiv:2307.09288, table 1, with the intermediate sizes of the published checkpoints.
_7B = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=11_008,
    max_seq_len=4096,
)
LLAMA2_SIZES = {
    "7b": _7B,
    "13b": replace(
        _7B, num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824
    ),
    "70b": replace(_7B, num_layers=80, num_heads=64, num_kv_heads=8, embed_dim=8192, intermediate_dim=28_672),
}

llama2_7b = ModelBuilder(LLAMA, LLAMA2_SIZES["7b"])
llama2_13b = ModelBuilder(LLAMA, LLAMA2_SIZES["13b"])
llama2_70b = ModelBuilder(LLAMA, LLAMA2_SIZES["70b"])

lora_llama2 = LoRABuilder(llama2)
lora_llama2_7b = LoRABuilder(llama2_7b)
lora_llama2_13b = LoRABuilder(llama2_13b)
lora_llama2_70b = LoRABuilder(llama2_70b)
qlora_llama2_7b = LoRABuilder(llama2_7b, quantize_base=True)
qlora_llama2_13b = LoRABuilder(llama2_13b, quantize_base=True)
qlora_llama2_70b = LoRABuilder(llama2_70b, quantize_base=True)


def llama2_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Llama 2 checkpoint; its datasets are written in `[INST]` and `[/INST]`.

    Args:
        path: its tokenizer.model, or the directory that holds it.
        max_seq_len: tokens after which an example is cut; None: never.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it is no SentencePiece model.
    """
    tokenizer = SentencePieceTokenizer(path, max_seq_len, prompt_template)
    return with_family_format(with_new_tokens(tokenizer, add_tokens, add_special_tokens), "llama2_chat")


Llama2Tokenizer = llama2_tokenizer
