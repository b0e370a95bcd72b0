"""How checkpoints of the Llama family name their weights, and what their configuration files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.rotary_order import paired_rule
from tune.modules import DecoderConfig, Family, Layout, WeightRule

# Positions that Llama 2 was trained for; params.json does not say.
_META_MAX_SEQ_LEN = 4096


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    arguments = {**sizes, **read_rope(fields, sizes)}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    arguments["mlp_bias"] = fields.flag("mlp_bias", False)
    fields.expect("hidden_act", "silu")
    fields.expect("rope_interleaved", False)
    for name in ("sliding_window", "quantization_config", "layer_types"):
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


def _read_meta_config(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    fields = ConfigFields(content, "params.json")
    embed_dim = fields.integer("dim")
    num_heads = fields.integer("n_heads")
    sizes = {
        # params.json may say -1, and gives the feed-forward's width by rules of rounding: the weights know.
        "vocab_size": _rows("tok_embeddings.weight", shapes),
        "num_layers": fields.integer("n_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("n_kv_heads", num_heads),
        "embed_dim": embed_dim,
        "head_dim": embed_dim // max(num_heads, 1),
        "intermediate_dim": _rows("layers.0.feed_forward.w1.weight", shapes),
        "max_seq_len": fields.integer("max_seq_len", _META_MAX_SEQ_LEN),
    }
    norm_eps = fields.number("norm_eps", 1e-5)
    rope_base = fields.number("rope_theta", 10_000.0)
    fields.expect("use_scaled_rope", False)
    fields.ignore(("vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size"))
    return finish(fields, {**sizes, "norm_eps": norm_eps, "rope_base": rope_base}, "params.json")


def _write_meta_config(config: DecoderConfig) -> dict[str, Any]:
    if config.head_dim * config.num_heads != config.embed_dim:
        raise CheckpointError(
            f"params.json cannot express heads of {config.head_dim}: it needs embed_dim {config.embed_dim} divided "
            f"by num_heads {config.num_heads}"
        )
    content: dict[str, Any] = {
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        **_meta_width(config),
    }
    if config.num_kv_heads != config.num_heads:
        content["n_kv_heads"] = config.num_kv_heads
    if config.rope_base != 10_000.0:
        content["rope_theta"] = config.rope_base
    return content


def _meta_width(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields from which Meta's code computes the feed-forward's width.

    It takes int(multiplier * int(8 d / 3)) and rounds up to a multiple.  # llama/model.py, FeedForward
    """
    base = int(2 * 4 * config.embed_dim / 3)
    for multiple_of, multiplier in ((256, None), (4096, 1.3), (1024, 1.3)):
        width = base if multiplier is None else int(multiplier * base)
        if -(-width // multiple_of) * multiple_of == config.intermediate_dim:
            fields: dict[str, Any] = {"multiple_of": multiple_of}
            return fields if multiplier is None else fields | {"ffn_dim_multiplier": multiplier}
    # Half a unit more, so that rounding down cannot fall below the width.
    return {"multiple_of": 1, "ffn_dim_multiplier": (config.intermediate_dim + 0.5) / base}


def _rows(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if len(shapes.get(name, ())) != 2:
        raise CheckpointError(
            f"the weights beside params.json hold no matrix {name}: this is not a Llama of Meta's"
        )
    return shapes[name][0]


_META = Layout(
    name="Meta",
    rules=(
        WeightRule("tok_embeddings.weight", "tok_embeddings.weight"),
        WeightRule("layers.{}.sa_norm.scale", "layers.{}.attention_norm.weight"),
        paired_rule("layers.{}.attn.q_proj.weight", "layers.{}.attention.wq.weight"),
        paired_rule("layers.{}.attn.k_proj.weight", "layers.{}.attention.wk.weight"),
        WeightRule("layers.{}.attn.v_proj.weight", "layers.{}.attention.wv.weight"),
        WeightRule("layers.{}.attn.output_proj.weight", "layers.{}.attention.wo.weight"),
        WeightRule("layers.{}.mlp_norm.scale", "layers.{}.ffn_norm.weight"),
        WeightRule("layers.{}.mlp.w1.weight", "layers.{}.feed_forward.w1.weight"),
        WeightRule("layers.{}.mlp.w2.weight", "layers.{}.feed_forward.w2.weight"),
        WeightRule("layers.{}.mlp.w3.weight", "layers.{}.feed_forward.w3.weight"),
        WeightRule("norm.scale", "norm.weight"),
        WeightRule("output.weight", "output.weight"),
    ),
    ignored=("rope.freqs",),
    tied_output="output.weight",
)

# The names of the parameters are torchtune's; it rotates neighbouring channels, as Meta does.
_TORCHTUNE = Layout(
    name="torchtune",
    rules=tuple(replace(rule, theirs=rule.ours) for rule in _META.rules),
    tied_output="output.weight",
)

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    hf=hf_layout(),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
    meta=_META,
    torchtune=_TORCHTUNE,
    read_meta_config=_read_meta_config,
    write_meta_config=_write_meta_config,
)
