"""Phi-3: sizes, builders and tokenizer; how checkpoints of Phi-3, Phi-3.5 and Phi-4 name their weights and sizes.

Models for long texts have two sets of rotary frequencies, one for texts within the original length and one for longer
texts. Which holds is decided for a whole text, since keys turned by the one do not fit queries turned by the other:
without caches by the largest position of the call, with caches by the length they were set up for. So a text that is
generated beyond the original length has the frequencies of long texts from its first token on, provided its caches
were made long enough; transformers starts with those of short texts and computes all keys anew when it crosses over.

The variants for 128k positions, Phi-3.5-mini among them, are built by `model: auto` from their own config.json, which
lists their rotary frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument, tokenizer_at
from tune.models.hf_config import (
    finish,
    longrope_magnitude,
    read_rope,
    read_sizes,
    windows_everywhere,
    write_rope,
    write_sizes,
)
from tune.models.layouts import hf_layout, torchtune_layout
from tune.modules import DecoderConfig, Family, LongRopeScaling, TransformerDecoder
from tune.tokenizers import BaseTokenizer, with_family_format

_ORIGINAL_LEN = 4096  # transformers, Phi3Config


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(_with_original_len(content), "config.json")
    sizes = read_sizes(fields, max_seq_len=4096, norm_eps=1e-5)
    rope = read_rope(fields, sizes, partial=True)
    if not isinstance(rope["rope_scaling"], LongRopeScaling | None):
        fields.problem('`rope_scaling` is of another type than "longrope", the only one of this family')
    elif rope["rope_scaling"] is not None:
        rope["rope_scaling"] = replace(rope["rope_scaling"], reads_anew=True)
    arguments = {**sizes, **rope}
    arguments.update(windows_everywhere(fields.optional_integer("sliding_window", None), sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    for name in ("embd_pdrop", "resid_pdrop"):
        fields.expect(name, 0.0, 0)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.expect(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        fields.expect(name, 1)
    fields.ignore(("original_max_position_embeddings",))
    return finish(fields, arguments)


def _with_original_len(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the original length where every other family has it, inside the scaling.

    The field beside it comes first, and long scaling went by other names.  # transformers, Phi3Config
    """
    changed = dict(content)
    for name in ("rope_scaling", "rope_parameters"):
        scaling = content.get(name)
        if not isinstance(scaling, dict):
            continue
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind in ("su", "yarn", "longrope"):
            original = content.get("original_max_position_embeddings", _ORIGINAL_LEN)
            changed[name] = {**scaling, "rope_type": "longrope", "original_max_position_embeddings": original}
    return changed


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "sliding_window": config.sliding_window,
        # transformers' own are Phi-3's, and elsewhere name an ordinary token; the tokenizer knows better.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if isinstance(config.rope_scaling, LongRopeScaling):
        scaling = config.rope_scaling
        # Older versions of transformers take these three fields and no other.
        content["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
        content["original_max_position_embeddings"] = scaling.original_max_seq_len
        usual = longrope_magnitude(
            config.max_seq_len / scaling.original_max_seq_len, scaling.original_max_seq_len
        )
        if not math.isclose(scaling.magnitude, usual, rel_tol=1e-9):
            content["rope_scaling"]["attention_factor"] = scaling.magnitude
    return content


_HF = hf_layout(
    {
        "attn.q_proj.weight": "self_attn.qkv_proj.weight",
        "attn.k_proj.weight": "self_attn.qkv_proj.weight",
        "attn.v_proj.weight": "self_attn.qkv_proj.weight",
        "mlp.w1.weight": "mlp.gate_up_proj.weight",
        "mlp.w3.weight": "mlp.gate_up_proj.weight",
    }
)

PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    classifier="Phi3ForSequenceClassification",
    hf=_HF,
    # torchtune, models/phi3/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def phi3(
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
    sliding_window_size: int | None = None,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Phi-3's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        sliding_window_size: keys a query sees; None: all before it.
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
        tie_word_embeddings=tie_word_embeddings,
        attn_dropout=attn_dropout,
        **windows_everywhere(sliding_window_size, num_layers),
    )
    return TransformerDecoder(config, PHI3)


# arXiv:2404.14219, 2, with vocabulary and windows of the published checkpoints for 4k positions.
_MINI = DecoderConfig(
    vocab_size=32_064,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=3072,
    head_dim=96,
    intermediate_dim=8192,
    max_seq_len=4096,
    sliding_window=2047,
    sliding_layers=tuple(range(32)),
)
_MEDIUM = replace(
    _MINI,
    num_layers=40,
    num_heads=40,
    num_kv_heads=10,
    embed_dim=5120,
    head_dim=128,
    intermediate_dim=17_920,
    sliding_layers=tuple(range(40)),
)

phi3_mini = ModelBuilder(PHI3, _MINI)
phi3_medium = ModelBuilder(PHI3, _MEDIUM)

lora_phi3 = LoRABuilder(phi3)
lora_phi3_mini = LoRABuilder(phi3_mini)
qlora_phi3_mini = LoRABuilder(phi3_mini, quantize_base=True)


def phi3_mini_tokenizer(
    path: str,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Phi-3 checkpoint; its datasets are written in its turns (`phi3`).

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
    return with_family_format(tokenizer, "phi3")


Phi3MiniTokenizer = phi3_mini_tokenizer
