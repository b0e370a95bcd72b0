"""Reading and writing what most config.json files share: sizes, rotary positions, sliding windows.

A field that is absent means what transformers' own configuration class of that family takes it to mean, so every
family passes its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError, ConfigError
from tune.models.hf_fields import HARMLESS_FIELDS
from tune.modules import (
    DecoderConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
)


def read_sizes(
    fields: ConfigFields,
    *,
    max_seq_len: int,
    norm_eps: float,
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    tied: bool = False,
) -> dict[str, Any]:
    """Return the arguments of `DecoderConfig` that every family has.

    Args:
        fields: of config.json.
        max_seq_len, norm_eps, num_kv_heads, tied: what holds where the file is silent; None heads: as many as
            query heads.
        head_dim: likewise; None: the width over the heads.
    """
    embed_dim = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if head_dim is None:
        head_dim = embed_dim // max(num_heads, 1)
        if num_heads > 0 and embed_dim % num_heads and not fields.has("head_dim"):
            fields.problem(
                f"`hidden_size` is {embed_dim}, not a multiple of `num_attention_heads` {num_heads}"
            )
    kv_heads = fields.optional_integer("num_key_value_heads", num_kv_heads)
    refuse_quantized(fields)
    return {
        "vocab_size": fields.integer("vocab_size"),
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": num_heads,
        # Null is as many as query heads in every family, whatever an absent field means there.
        "num_kv_heads": num_heads if kv_heads is None else kv_heads,
        "embed_dim": embed_dim,
        "head_dim": fields.integer("head_dim", head_dim),
        "intermediate_dim": fields.integer("intermediate_size"),
        "max_seq_len": fields.integer("max_position_embeddings", max_seq_len),
        "norm_eps": fields.number("rms_norm_eps", norm_eps),
        "attn_dropout": fields.number("attention_dropout", 0.0),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", tied),
    }


def refuse_quantized(fields: ConfigFields) -> None:
    """Note a problem where the weights are quantised in a way that is not read: their numbers are codes."""
    content = fields.mapping("quantization_config")
    # Which matrices are in fp8 or MXFP4, and in what blocks, their files say themselves.
    if fields.has("quantization_config") and content.get("quant_method") not in ("fp8", "mxfp4"):
        fields.problem(
            "`quantization_config` says that the weights are quantised "
            f"({str(content.get('quant_method', 'unknown method'))[:120]}); only fp64, fp32, fp16 and bf16 weights are "
            "read, and fp8 and MXFP4 with their scales: take the checkpoint that this one was made from"
        )


def read_rope(
    fields: ConfigFields, sizes: Mapping[str, Any], *, base: float = 10_000.0, partial: bool = False
) -> dict[str, Any]:
    """Return `rope_base`, `rope_scaling` and `rotary_dim`.

    They stand in `rope_theta` and `rope_scaling`, or inside `rope_parameters` as newer files have it.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
        base: what holds where the file is silent.
        partial: the family lets only some channels of a head turn.
    """
    base = fields.number("rope_theta", base)
    fraction = _fraction(fields, 1.0, partial)
    scaling: RopeScaling | None = None
    found = []
    for name in ("rope_scaling", "rope_parameters"):
        content = fields.mapping(name)
        if not content:
            continue
        inner = ConfigFields(content, name)
        base = inner.number("rope_theta", base)
        fraction = _fraction(inner, fraction, partial)
        scaling = read_scaling(inner, fields, sizes["max_seq_len"])
        found.append((base, fraction, scaling))
        inner.note_in(fields)
    if len(set(found)) > 1:
        fields.problem(
            "`rope_scaling` and `rope_parameters` say different things of the rotary positions; keep the right one"
        )
    rotary_dim = int(sizes["head_dim"] * fraction)
    return {
        "rope_base": base,
        "rope_scaling": scaling,
        "rotary_dim": None if rotary_dim == sizes["head_dim"] else rotary_dim,
    }


def read_scaling(inner: ConfigFields, fields: ConfigFields, max_seq_len: int) -> RopeScaling | None:
    """Return the scaling that `rope_scaling` or `rope_parameters` describes, None where there is none.

    Args:
        inner: fields of that object; what is wrong with them is noted there.
        fields: of config.json around it, where some files keep the original length.
        max_seq_len: `max_position_embeddings`.
    """
    kind = inner.text("rope_type", inner.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=inner.number("factor"))
    if kind == "dynamic":
        if inner.has("original_max_position_embeddings"):
            inner.expect("original_max_position_embeddings", max_seq_len)  # which is what counts
        return DynamicScaling(factor=inner.number("factor"), original_max_seq_len=max_seq_len)
    beside = fields.integer("original_max_position_embeddings", max_seq_len)
    original = inner.integer("original_max_position_embeddings", beside)
    if fields.has("original_max_position_embeddings") and original != beside:
        # transformers takes the outer one, other tools the inner one.
        fields.problem(
            f"`original_max_position_embeddings` is {beside}, and {original} inside the scaling; keep the right one"
        )
    if kind == "llama3":
        return Llama3Scaling(
            factor=inner.number("factor"),
            low_freq_factor=inner.number("low_freq_factor"),
            high_freq_factor=inner.number("high_freq_factor"),
            original_max_seq_len=original,
        )
    if kind == "yarn":
        # Numbers of 0 count as not given.  # transformers, _compute_yarn_parameters
        return YarnScaling(
            factor=_ratio(inner, max_seq_len, original),
            original_max_seq_len=original,
            beta_fast=inner.number("beta_fast", 32.0) or 32.0,
            beta_slow=inner.number("beta_slow", 1.0) or 1.0,
            magnitude=inner.optional_number("attention_factor", None),
            truncate=inner.flag("truncate", True),
            mscale=inner.optional_number("mscale", None) or None,
            mscale_all_dim=inner.optional_number("mscale_all_dim", None) or None,
        )
    if kind in ("longrope", "su"):
        factor = inner.number("factor", max_seq_len / max(original, 1))
        return LongRopeScaling(
            short_factors=inner.numbers("short_factor"),
            long_factors=inner.numbers("long_factor"),
            original_max_seq_len=original,
            magnitude=inner.number("attention_factor", longrope_magnitude(factor, original)),
            reads_anew=False,
        )
    inner.problem(
        f'`rope_type` is "{kind[:120]}", which is not supported: only "default", "linear", "dynamic", "llama3", '
        '"yarn" and "longrope" are'
    )
    return None


def _ratio(inner: ConfigFields, max_seq_len: int, original: int) -> float:
    """Return `factor`; where it is null, how many times longer the texts have become."""
    factor = inner.optional_number("factor", 0.0)
    if factor is None:
        return max_seq_len / max(original, 1)
    return factor or inner.number("factor")


def longrope_magnitude(factor: float, original_max_seq_len: int) -> float:
    """Return the factor on cosines and sines where a file names none.  # arXiv:2404.14219, config.json of Phi-3"""
    if factor <= 1 or original_max_seq_len < 2:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_seq_len))


def windows_everywhere(window: int | None, num_layers: int) -> dict[str, Any]:
    """Return `sliding_window` and `sliding_layers` of a family that has windows in all layers or in none."""
    return {
        "sliding_window": window,
        "sliding_layers": () if window is None else tuple(layer_range(num_layers)),
    }


def layer_range(num_layers: int) -> range:
    """Return the numbers of the layers, not without end where a file asks for that many: finish() refuses those."""
    return range(min(num_layers, 10_000))


def finish(fields: ConfigFields, arguments: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Return the decoder's description once every field is accounted for, or raise CheckpointError."""
    fields.ignore(HARMLESS_FIELDS)
    fields.expect("pruned_heads", {})
    fields.finish()
    try:
        return DecoderConfig(**arguments)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def write_sizes(config: DecoderConfig, *, has_head_dim: bool = True) -> dict[str, Any]:
    """Return the fields of config.json that every family has.

    Args:
        config: the model's sizes.
        has_head_dim: the family's files name the width of a head; otherwise only where it is not the width over the
            heads.
    """
    content = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.intermediate_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.attn_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
    }
    if not has_head_dim and config.head_dim * config.num_heads == config.embed_dim:
        del content["head_dim"]
    return content


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of rotary positions, where every version of transformers, and other tools, look for them."""
    content: dict[str, Any] = {
        "rope_theta": config.rope_base,
        "rope_scaling": None if config.rope_scaling is None else write_scaling(config.rope_scaling),
    }
    if config.rotary_dim is not None:
        content["partial_rotary_factor"] = rotary_share(config)
    return content


def rotary_share(config: DecoderConfig) -> float:
    """Return which share of a head's channels turns."""
    share = config.rotary_channels / config.head_dim
    if int(config.head_dim * share) == config.rotary_channels:
        return share
    # Readers round down: half a channel more, so that none is lost.
    return (config.rotary_channels + 0.5) / config.head_dim


def write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Return `rope_scaling` as config.json has it."""
    match scaling:
        case LinearScaling() | DynamicScaling():
            kind = "linear" if isinstance(scaling, LinearScaling) else "dynamic"
            return {"rope_type": kind, "factor": scaling.factor}
        case ProportionalScaling():
            return {
                "rope_type": "proportional",
                "partial_rotary_factor": scaling.share,
                **({} if scaling.factor == 1.0 else {"factor": scaling.factor}),
            }
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_seq_len,
            }
        case YarnScaling():
            # Left out where it follows from the factor, so that what is read again is the same.
            magnitudes = {
                "attention_factor": scaling.magnitude,
                "mscale": scaling.mscale,
                "mscale_all_dim": scaling.mscale_all_dim,
            }
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_seq_len,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                **{name: value for name, value in magnitudes.items() if value is not None},
            }
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "original_max_position_embeddings": scaling.original_max_seq_len,
                "attention_factor": scaling.magnitude,
            }
    raise TypeError(f"no way to write {scaling!r}")


def _fraction(fields: ConfigFields, default: float, partial: bool) -> float:
    if partial:
        fraction = fields.number("partial_rotary_factor", default)
        if not 0 <= fraction <= 1:
            fields.problem(
                f"`partial_rotary_factor` is {fraction}; a share of a head's channels is from 0 to 1"
            )
        return min(max(fraction, 0.0), 1.0)
    fields.expect("partial_rotary_factor", 1.0, 1)
    return default
