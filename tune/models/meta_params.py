"""Meta's params.json, beside the weights of every Llama as Meta hands them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError
from tune.models.hf_config import finish
from tune.modules import DecoderConfig, Llama3Scaling

Shapes = Mapping[str, tuple[int, ...]]
# What has no place in params.json and no bearing on a trained model's numbers.
_FREE = {"attn_dropout"}
# Llama 3.1's. params.json only says that positions are scaled, and Meta's code holds these numbers.
# llama_models, models/llama3/model.py, apply_scaling
_SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
# Llama 3.2's factor in the published config.json files. Its 1B and 3B are narrower than every Llama 3.1, and nothing
# else tells their params.json apart.
_SMALL_FACTOR = 32.0
_SMALL_BELOW_WIDTH = 4096


def rows_of(name: str, shapes: Shapes) -> int:
    """Return the rows of a matrix beside params.json, or raise CheckpointError where there is no such matrix."""
    if len(shapes.get(name, ())) != 2:
        raise CheckpointError(
            f"the weights beside params.json hold no matrix {name}: this is not a model in Meta's layout"
        )
    return shapes[name][0]


def check_written(
    content: Mapping[str, Any],
    config: DecoderConfig,
    read: Callable[[Mapping[str, Any], Shapes], DecoderConfig],
) -> None:
    """Raise CheckpointError unless a params.json says all of a model: it knows fewer kinds than we do.

    Args:
        content: to be written.
        config: what it should say.
        read: what reads it again.
    """
    shapes = {
        "tok_embeddings.weight": (config.vocab_size, config.embed_dim),
        "output.weight": (config.vocab_size, config.embed_dim),
        "layers.0.feed_forward.w1.weight": (config.intermediate_dim, config.embed_dim),
    }
    try:
        again = read(content, shapes)
    except CheckpointError as error:
        raise CheckpointError(
            f"params.json cannot express this model; save it in Hugging Face layout: {error}"
        ) from error
    lost = [
        f"{field.name} {getattr(config, field.name)!r}"
        for field in fields_of(config)
        if field.name not in _FREE and getattr(config, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise CheckpointError(
            f"params.json cannot express {', '.join(lost)}; save this model in Hugging Face layout"
        )


def read_llama_params(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """Return the sizes that params.json and the weights beside it describe.

    Args:
        content: of params.json.
        shapes: of the weights.

    Raises:
        CheckpointError: a field that is not understood, or weights that are not Llama's.
    """
    fields = ConfigFields(content, "params.json")
    embed_dim = fields.integer("dim")
    num_heads = fields.integer("n_heads")
    norm_eps = fields.number("norm_eps", 1e-5)
    rope_base = fields.number("rope_theta", 10_000.0)
    is_scaled = fields.flag("use_scaled_rope", False)
    is_small = is_scaled and embed_dim < _SMALL_BELOW_WIDTH
    arguments = {
        # params.json may say -1, and gives the feed-forward's width by rules of rounding: the weights know.
        "vocab_size": rows_of("tok_embeddings.weight", shapes),
        "num_layers": fields.integer("n_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("n_kv_heads", num_heads),
        "embed_dim": embed_dim,
        "head_dim": embed_dim // max(num_heads, 1),
        "intermediate_dim": rows_of("layers.0.feed_forward.w1.weight", shapes),
        "max_seq_len": fields.integer("max_seq_len", _usual_length(is_scaled, rope_base, norm_eps)),
        "norm_eps": norm_eps,
        "rope_base": rope_base,
        # Meta's files hold the output matrix of a tied model as well; loading finds out if it is another.
        "tie_word_embeddings": fields.flag("tie_word_embeddings", is_small or "output.weight" not in shapes),
        "rope_scaling": _read_scaling(fields, is_small) if is_scaled else None,
    }
    fields.ignore(("vocab_size", "multiple_of", "ffn_dim_multiplier", "max_batch_size"))
    return finish(fields, arguments, "params.json")


def write_llama_params(config: DecoderConfig) -> dict[str, Any]:
    """Return what params.json says of a model; raise CheckpointError where it cannot say it.

    Fields that Meta's code does not know are written only for what its own models do not have.
    """
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
    scaling = config.rope_scaling
    is_scaled = isinstance(scaling, Llama3Scaling)
    is_small = is_scaled and config.embed_dim < _SMALL_BELOW_WIDTH
    if isinstance(scaling, Llama3Scaling):
        content["use_scaled_rope"] = True
        content.update(_write_scaling(scaling, is_small))
    if config.tie_word_embeddings != is_small:
        content["tie_word_embeddings"] = config.tie_word_embeddings
    if config.max_seq_len != _usual_length(is_scaled, config.rope_base, config.norm_eps):
        content["max_seq_len"] = config.max_seq_len
    check_written(content, config, read_llama_params)
    return content


def _read_scaling(fields: ConfigFields, is_small: bool) -> Llama3Scaling:
    # The first and the third name are Meta's own in Llama 4's params.json.  # llama_models, models/llama4/args.py
    return Llama3Scaling(
        factor=fields.number("rope_scaling_factor", _SMALL_FACTOR if is_small else _SCALING.factor),
        low_freq_factor=fields.number("rope_low_freq_factor", _SCALING.low_freq_factor),
        high_freq_factor=fields.number("rope_high_freq_factor", _SCALING.high_freq_factor),
        original_max_seq_len=fields.integer("rope_original_max_seq_len", _SCALING.original_max_seq_len),
    )


def _write_scaling(scaling: Llama3Scaling, is_small: bool) -> dict[str, Any]:
    usual = {
        "rope_scaling_factor": _SMALL_FACTOR if is_small else _SCALING.factor,
        "rope_low_freq_factor": _SCALING.low_freq_factor,
        "rope_high_freq_factor": _SCALING.high_freq_factor,
        "rope_original_max_seq_len": _SCALING.original_max_seq_len,
    }
    own = {
        "rope_scaling_factor": scaling.factor,
        "rope_low_freq_factor": scaling.low_freq_factor,
        "rope_high_freq_factor": scaling.high_freq_factor,
        "rope_original_max_seq_len": scaling.original_max_seq_len,
    }
    return {name: value for name, value in own.items() if value != usual[name]}


def _usual_length(is_scaled: bool, rope_base: float, norm_eps: float) -> int:
    """Return the positions of the generation that these constants belong to; params.json does not say."""
    if is_scaled:
        return 131_072  # Llama 3.1 and later
    lengths = {500_000.0: 8192, 1_000_000.0: 16_384}  # Llama 3, Code Llama
    return lengths.get(rope_base, 2048 if norm_eps == 1e-6 else 4096)  # Llama 1, Llama 2


def _meta_width(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields from which Meta's code computes the feed-forward's width.

    It takes int(multiplier * int(8 d / 3)) and rounds up to a multiple.  # llama/model.py, FeedForward
    """
    base = int(2 * 4 * config.embed_dim / 3)
    for multiple_of, multiplier in ((256, None), (4096, 1.3), (1024, 1.3), (256, 1.5), (4096, 1.2)):
        width = base if multiplier is None else int(multiplier * base)
        if -(-width // multiple_of) * multiple_of == config.intermediate_dim:
            fields: dict[str, Any] = {"multiple_of": multiple_of}
            return fields if multiplier is None else fields | {"ffn_dim_multiplier": multiplier}
    # Half a unit more, so that rounding down cannot fall below the width.
    return {"multiple_of": 1, "ffn_dim_multiplier": (config.intermediate_dim + 0.5) / base}
