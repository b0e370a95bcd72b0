"""Gemma 3: sizes and builders of the text models, tokenizer; how its checkpoints name their weights and sizes.

The larger ones also see pictures. Of those the text model is read; the rest goes along into what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import ModelBuilder, tokenizer_at
from tune.models.gemma2 import FOUR_NORMS, gemma2_constants, read_gemma2, write_gemma2
from tune.models.hf_config import finish, read_sizes, write_rope
from tune.models.layouts import hf_layout
from tune.models.outer import LLAVA_NAMES, part_of
from tune.models.rope_by_kind import read_rope_by_kind, write_rope_by_kind
from tune.modules import DecoderConfig, Family, LinearScaling, OuterModel, TransformerDecoder

# What a text_config leaves out, since it writes only what differs.  # transformers, Gemma3TextConfig
_DEFAULT_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
_GLOBAL_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0
_SEES_PICTURES = OuterModel(
    architecture="Gemma3ForConditionalGeneration",
    model_type="gemma3",
    carried=(
        *("model.vision_tower.*", "model.multi_modal_projector.*"),
        *("vision_tower.*", "multi_modal_projector.*"),
    ),
    fields=(
        *("vision_config", "mm_tokens_per_image", "processor_class"),
        *("boi_token_index", "eoi_token_index", "image_token_index"),
        *("boi_token_id", "eoi_token_id", "image_token_id"),
    ),
    older=LLAVA_NAMES,
    defaults=_DEFAULT_SIZES,
)


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1e-6, head_dim=256, num_kv_heads=4, tied=True)
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    if pattern < 1:
        fields.problem(f"`sliding_window_pattern` is {pattern}; it must be at least 1")
    rope = read_rope_by_kind(fields, sizes, base=_GLOBAL_BASE, local_base=_LOCAL_BASE)
    arguments = {**read_gemma2(fields, sizes, pattern=max(pattern, 1)), **rope}
    arguments["qk_norm"] = "head"
    # transformers knows the field and does not apply it, so its meaning is not settled.
    fields.expect("attn_logit_softcapping")
    arguments["final_softcap"] = fields.optional_number("final_logit_softcapping", None)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {**write_gemma2(config), **write_rope(config), "rope_local_base_freq": config.local_rope_base}
    # Tools of before transformers 5 know the fields above alone, which say all but this.
    return content if config.local_rope_scaling is None else content | write_rope_by_kind(config)


GEMMA3 = part_of(
    Family(
        name="gemma3_text",
        architectures=("Gemma3ForCausalLM",),
        classifier="Gemma3TextForSequenceClassification",
        hf=hf_layout(FOUR_NORMS),
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
    ),
    _SEES_PICTURES,
)


def gemma3(
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
    rope_base: float = 1_000_000.0,
    local_rope_base: float = 10_000.0,
    rope_factor: float = 1.0,
    sliding_window_size: int = 1024,
    query_pre_attn_scalar: int | None = None,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma 3's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks; of each six, the first five see no further than the window.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies in layers without a window.
        local_rope_base: base in layers with one.
        rope_factor: how many positions count as one in layers without a window.
        sliding_window_size: keys a query sees in layers with a window.
        query_pre_attn_scalar: scores are divided by its root; None: `head_dim`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    scalar = head_dim if query_pre_attn_scalar is None else query_pre_attn_scalar
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
        rope_scaling=None if rope_factor == 1.0 else LinearScaling(rope_factor),
        qk_norm="head",
        sliding_window=sliding_window_size,
        sliding_layers=_five_of_six(num_layers),
        local_rope_base=local_rope_base,
        **gemma2_constants(embed_dim, scalar),
    )
    return TransformerDecoder(config, GEMMA3)


def _five_of_six(num_layers: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(num_layers) if (layer + 1) % 6)


def _sizes(num_layers: int, embed_dim: int, scalar: int = 256, **others: Any) -> DecoderConfig:
    # arXiv:2503.19786, table 1, with widths and heads from google/gemma_pytorch, config.py. The published checkpoints
    # of 4B and larger keep 64 rows of the vocabulary for pictures.
    return DecoderConfig(
        vocab_size=262_208,
        num_layers=num_layers,
        embed_dim=embed_dim,
        max_seq_len=131_072,
        norm_eps=1e-6,
        rope_base=_GLOBAL_BASE,
        rope_scaling=LinearScaling(8.0),
        qk_norm="head",
        sliding_window=1024,
        sliding_layers=_five_of_six(num_layers),
        local_rope_base=_LOCAL_BASE,
        **others,
        **gemma2_constants(embed_dim, scalar),
    )


def _short(sizes: DecoderConfig) -> DecoderConfig:
    return replace(sizes, vocab_size=262_144, max_seq_len=32_768, rope_scaling=None, sliding_window=512)


_270M = _short(_sizes(18, 640, num_heads=4, num_kv_heads=1, head_dim=256, intermediate_dim=2048))
_1B = _short(_sizes(26, 1152, num_heads=4, num_kv_heads=1, head_dim=256, intermediate_dim=6912))
_4B = _sizes(34, 2560, num_heads=8, num_kv_heads=4, head_dim=256, intermediate_dim=10_240)
_12B = _sizes(48, 3840, num_heads=16, num_kv_heads=8, head_dim=256, intermediate_dim=15_360)
_27B = _sizes(62, 5376, 168, num_heads=32, num_kv_heads=16, head_dim=128, intermediate_dim=21_504)

gemma3_270m = ModelBuilder(GEMMA3, _270M)
gemma3_1b = ModelBuilder(GEMMA3, _1B)
gemma3_4b = ModelBuilder(GEMMA3, _4B)
gemma3_12b = ModelBuilder(GEMMA3, _12B)
gemma3_27b = ModelBuilder(GEMMA3, _27B)

gemma3_tokenizer = tokenizer_at
