"""What params.json files have in common: sizes that only the weights tell, and the check of what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from tune.errors import CheckpointError
from tune.modules import DecoderConfig

Shapes = Mapping[str, tuple[int, ...]]
# What has no place in params.json and no bearing on a trained model's numbers.
_FREE = {"attn_dropout"}


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
        for field in fields(config)
        if field.name not in _FREE and getattr(config, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise CheckpointError(
            f"params.json cannot express {', '.join(lost)}; save this model in Hugging Face layout"
        )
