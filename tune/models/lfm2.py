"""LFM2: sizes, builders and tokenizer; how its checkpoints name their weights and sizes.

Two of three layers see a few tokens through a convolution instead of attending.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument, tokenizer_at
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout
from tune.modules import DecoderConfig, Family, ShortConvConfig, TransformerDecoder

_KINDS = ("conv", "full_attention")
_BASE = 1_000_000.0
# Names of before transformers 5, which come first, and the usual ones.
_OLDER = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
_OF_INITIALISATION = (
    *("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init"),
)


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    given = {name: value for name, value in content.items() if name not in _OLDER}
    given |= {usual: content[older] for older, usual in _OLDER.items() if content.get(older) is not None}
    fields = ConfigFields(given, "config.json")
    for older, usual in _OLDER.items():
        if None not in (content.get(older), content.get(usual)) and content[older] != content[usual]:
            fields.problem(f"`{older}` and `{usual}` say different things; keep the right one")
    sizes = read_sizes(fields, max_seq_len=128_000, norm_eps=1e-5, num_kv_heads=8, tied=True)
    sizes["norm_eps"] = fields.number("norm_eps", 1e-5)  # whatever others' name for it says
    sizes["intermediate_dim"] = _adjusted_width(fields, sizes["intermediate_dim"])
    arguments = {
        **sizes,
        **read_rope(fields, sizes, base=_BASE),
        "qk_norm": "head",
        "conv": _read_conv(fields, sizes["num_layers"]),
    }
    # Other names for the same, and what no model is without.
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        fields.expect(name, sizes["embed_dim"])
    fields.expect("num_heads", sizes["num_heads"])
    fields.expect("block_norm_eps", sizes["norm_eps"])
    fields.expect("theta", arguments["rope_base"])
    for name in ("block_use_swiglu", "use_pos_enc"):
        fields.expect(name, True)
    fields.ignore(_OF_INITIALISATION)
    return finish(fields, arguments)


def _adjusted_width(fields: ConfigFields, width: int) -> int:
    """Return the width inside the feed-forward: two thirds of the one that is named, unless that is as it is."""
    factor = fields.number("block_ffn_dim_multiplier", 1.0)
    multiple = fields.integer("block_multiple_of", 256)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if multiple < 1 or not 0 < factor < 1000:
        fields.problem(
            f"`block_multiple_of` is {multiple} and `block_ffn_dim_multiplier` {factor}; they must be above 0"
        )
        return width
    return -(-int(factor * width) // multiple) * multiple


def _read_conv(fields: ConfigFields, num_layers: int) -> ShortConvConfig | None:
    kinds = fields.choices("layer_types", min(max(num_layers, 0), 10_000), *_KINDS)
    attending = fields.integers("full_attn_idxs") if fields.has("full_attn_idxs") else None
    fields.ignore(("full_attn_idxs",))
    if kinds is None:
        listed = layer_range(num_layers) if attending is None else attending
        kinds = tuple(_KINDS[layer in listed] for layer in layer_range(num_layers))
    elif attending is not None and {*attending} != {i for i, kind in enumerate(kinds) if kind == _KINDS[1]}:
        fields.problem("`layer_types` and `full_attn_idxs` say different things; keep the right one")
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == _KINDS[0])
    conv = ShortConvConfig(layers, fields.integer("conv_L_cache", 3), fields.flag("conv_bias", False))
    return conv if layers else None


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {**write_sizes(config, has_head_dim=False), **write_rope(config)}
    content["norm_eps"] = content.pop("rms_norm_eps")
    if not config.attn_dropout:
        del content["attention_dropout"]  # which this family does not know
    return {
        **content,
        "block_auto_adjust_ff_dim": False,
        "layer_types": [_KINDS[layer not in config.conv_layers] for layer in range(config.num_layers)],
        "conv_L_cache": 3 if config.conv is None else config.conv.width,
        "conv_bias": config.conv is not None and config.conv.bias,
    }


_PARTS = ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
_LAYOUT = hf_layout(
    {
        "sa_norm.scale": "operator_norm.weight",
        "mlp_norm.scale": "ffn_norm.weight",
        "attn.output_proj.weight": "self_attn.out_proj.weight",
        "attn.q_norm.scale": "self_attn.q_layernorm.weight",
        "attn.k_norm.scale": "self_attn.k_layernorm.weight",
        **{f"attn.{part}": f"conv.{part}" for part in _PARTS},
        "attn.conv_weight": "conv.conv.weight",
        "attn.conv_bias": "conv.conv.bias",
        **{f"mlp.{name}.weight": f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")},
    }
)

LFM2 = Family(
    name="lfm2",
    architectures=("Lfm2ForCausalLM",),
    hf=replace(
        _LAYOUT,
        rules=tuple(
            replace(rule, theirs="model.embedding_norm.weight") if rule.ours == "norm.scale" else rule
            for rule in _LAYOUT.rules
        ),
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def _conv(num_layers: int, attending: Collection[int], width: int = 3) -> ShortConvConfig:
    return ShortConvConfig(tuple(layer for layer in range(num_layers) if layer not in attending), width)


def lfm2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    conv_width: int = 3,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = _BASE,
    tie_word_embeddings: bool = True,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of LFM2's kind in the sizes given; every third layer attends.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        conv_width: tokens that a convolution sees.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
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
        qk_norm="head",
        conv=_conv(num_layers, range(2, num_layers, 3), conv_width),
    )
    return TransformerDecoder(config, LFM2)


# LiquidAI/LFM2-350M, -700M, -1.2B and -2.6B, config.json; arXiv:2511.23404, table 1.
_1_2B = DecoderConfig(
    vocab_size=65_536,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=2048,
    head_dim=64,
    intermediate_dim=8192,
    max_seq_len=128_000,
    norm_eps=1e-5,
    rope_base=_BASE,
    tie_word_embeddings=True,
    qk_norm="head",
    conv=_conv(16, (2, 5, 8, 10, 12, 14)),
)
_350M = replace(_1_2B, num_heads=16, embed_dim=1024, intermediate_dim=4608)
_700M = replace(_1_2B, num_heads=24, embed_dim=1536, intermediate_dim=6912)
_2_6B = replace(_1_2B, num_layers=30, intermediate_dim=10_752, conv=_conv(30, (2, 5, 9, 13, 17, 21, 24, 27)))

lfm2_350m = ModelBuilder(LFM2, _350M)
lfm2_700m = ModelBuilder(LFM2, _700M)
lfm2_1_2b = ModelBuilder(LFM2, _1_2B)
lfm2_2_6b = ModelBuilder(LFM2, _2_6B)

lora_lfm2_350m = LoRABuilder(lfm2_350m)
lora_lfm2_700m = LoRABuilder(lfm2_700m)
lora_lfm2_1_2b = LoRABuilder(lfm2_1_2b)
lora_lfm2_2_6b = LoRABuilder(lfm2_2_6b)
qlora_lfm2_2_6b = LoRABuilder(lfm2_2_6b, quantize_base=True)

lfm2_tokenizer = tokenizer_at
