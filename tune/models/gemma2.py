"""Gemma 2: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, tokenizer_at
from tune.models.gemma import GemmaTokenizer as GemmaTokenizer
from tune.models.gemma import gemma_constants, read_gemma, write_gemma
from tune.models.gemma import gemma_tokenizer as gemma_tokenizer
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope
from tune.models.layouts import hf_layout, torchtune_layout
from tune.modules import DecoderConfig, Family, TransformerDecoder

_SLIDING, _FULL = "sliding_attention", "full_attention"
FOUR_NORMS = {
    "sa_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
# The names that torchtune's own converter pairs with Hugging Face's: what it calls the norm before the
# feed-forward holds the one after it, and the reverse.  # torchtune, models/gemma2/_convert_weights.py
_SWAPPED_NORMS = {
    "layers.{}.sa_post_norm.scale": "layers.{}.sa_scale.scale",
    "layers.{}.mlp_post_norm.scale": "layers.{}.mlp_norm.scale",
    "layers.{}.mlp_norm.scale": "layers.{}.mlp_scale.scale",
}


def gemma2_constants(embed_dim: int, scalar: float) -> dict[str, Any]:
    """Return what Gemma 2 and 3 have by design: Gemma's constants, and norms on both sides.

    Args:
        embed_dim: width.
        scalar: attention scores are divided by its root.
    """
    return {
        **gemma_constants(embed_dim),
        "norm_placement": "both",
        "attn_scale": max(scalar, 1) ** -0.5,
    }


def read_gemma2(fields: ConfigFields, sizes: Mapping[str, Any], *, pattern: int) -> dict[str, Any]:
    """Return what Gemma 2 and 3 have in common: norms on both sides, windows, the scale of scores.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
        pattern: every layer of this number sees everything, where the file does not list the layers.
    """
    num_layers = sizes["num_layers"]
    kinds = fields.choices("layer_types", num_layers, _SLIDING, _FULL)
    if kinds is None:
        kinds = tuple(_SLIDING if (layer + 1) % pattern else _FULL for layer in layer_range(num_layers))
    scalar = fields.number("query_pre_attn_scalar", 256)
    if scalar <= 0:
        fields.problem(f"`query_pre_attn_scalar` is {scalar:g}; it must be above 0")
    return {
        **read_gemma(fields, sizes),
        "norm_placement": "both",
        "attn_scale": scalar**-0.5 if scalar > 0 else None,
        "sliding_window": fields.optional_integer("sliding_window", 4096),
        "sliding_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING),
    }


def write_gemma2(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields that Gemma 2 and 3 have in common, without those of rotary positions."""
    sliding = set(config.sliding_layers)
    # The scalar of every published size is a whole number, and transformers takes no other.
    scalar = config.head_dim if config.attn_scale is None else config.attn_scale**-2
    return {
        **write_gemma(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "sliding_window": config.sliding_window,
        "layer_types": [_SLIDING if layer in sliding else _FULL for layer in range(config.num_layers)],
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=8192, norm_eps=1e-6, head_dim=256, num_kv_heads=4, tied=True)
    arguments = {**read_gemma2(fields, sizes, pattern=2), **read_rope(fields, sizes)}
    arguments["attn_softcap"] = fields.optional_number("attn_logit_softcapping", 50.0)
    arguments["final_softcap"] = fields.optional_number("final_logit_softcapping", 30.0)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_gemma2(config), **write_rope(config)}


_HF = hf_layout(FOUR_NORMS)

GEMMA2 = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    classifier="Gemma2ForSequenceClassification",
    hf=_HF,
    torchtune=torchtune_layout(
        _HF,
        {**_SWAPPED_NORMS, "norm.scale": "norm.rms_norm.scale"},
        paired=True,
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def gemma2(
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
    hidden_capping_value: float = 50.0,
    final_capping_value: float = 30.0,
    sliding_window_size: int = 4096,
    query_pre_attn_scalar: int | None = None,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Gemma 2's kind in the sizes given; its output matrix is tied.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks; the first, third, ... see no further than the window.
        num_heads: query heads.
        head_dim: width of a head.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        hidden_capping_value: bound of the attention scores.
        final_capping_value: bound of the logits.
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
        attn_softcap=hidden_capping_value,
        sliding_window=sliding_window_size,
        sliding_layers=tuple(range(0, num_layers, 2)),
        final_softcap=final_capping_value,
        **gemma2_constants(embed_dim, scalar),
    )
    return TransformerDecoder(config, GEMMA2)


def _sizes(num_layers: int, embed_dim: int, scalar: int = 256, **others: Any) -> DecoderConfig:
    # arXiv:2408.00118, table 1 (its feed-forward widths count gate and value together).
    return DecoderConfig(
        vocab_size=256_000,
        num_layers=num_layers,
        embed_dim=embed_dim,
        max_seq_len=8192,
        norm_eps=1e-6,
        attn_softcap=50.0,
        sliding_window=4096,
        sliding_layers=tuple(range(0, num_layers, 2)),
        final_softcap=30.0,
        **others,
        **gemma2_constants(embed_dim, scalar),
    )


_2B = _sizes(26, 2304, num_heads=8, num_kv_heads=4, head_dim=256, intermediate_dim=9216)
_9B = _sizes(42, 3584, num_heads=16, num_kv_heads=8, head_dim=256, intermediate_dim=14_336)
# It divides its scores by the root of width over heads.  # google/gemma_pytorch, config.py
_27B = _sizes(46, 4608, 144, num_heads=32, num_kv_heads=16, head_dim=128, intermediate_dim=36_864)

gemma2_2b = ModelBuilder(GEMMA2, _2B)
gemma2_9b = ModelBuilder(GEMMA2, _9B)
gemma2_27b = ModelBuilder(GEMMA2, _27B)

lora_gemma2 = LoRABuilder(gemma2)
lora_gemma2_2b = LoRABuilder(gemma2_2b)
lora_gemma2_9b = LoRABuilder(gemma2_9b)
lora_gemma2_27b = LoRABuilder(gemma2_27b)
qlora_gemma2_2b = LoRABuilder(gemma2_2b, quantize_base=True)
qlora_gemma2_9b = LoRABuilder(gemma2_9b, quantize_base=True)
qlora_gemma2_27b = LoRABuilder(gemma2_27b, quantize_base=True)

gemma2_tokenizer = tokenizer_at
