"""Families whose decoders are also published as the text part of a larger model: what both sides need to know."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tune.checkpoints import ConfigFields, find_layout, open_weights, same_bits
from tune.errors import CheckpointError
from tune.models.hf_config import refuse_quantized
from tune.models.hf_fields import HARMLESS_FIELDS
from tune.modules import DecoderConfig, Family, Layout, OuterModel
from tune.utils import get_logger

# Prefixes of text model and head in files of transformers before 4.52, and on the hub.
LLAVA_NAMES = (("language_model.model.", "language_model.lm_head.weight"),)


def part_of(family: Family, *outers: OuterModel) -> Family:
    """Return a family that is also read out of larger models, and saved as a part of them again.

    Args:
        family: of the decoder; the `model_type` of a `text_config` is its name.
        outers: the larger models.
    """

    def read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
        for outer in outers:
            if outer.text_config in content:
                return _read_part(content, outer, family)
        return family.read_hf_config(content)

    variants = [
        _as_part(layout, outer, trunk, output)
        for outer in outers
        for layout in (family.hf, *family.hf_variants)
        for trunk, output in ((outer.trunk, outer.output), *outer.older)
    ]
    return replace(
        family,
        architectures=(*family.architectures, *(outer.architecture for outer in outers)),
        hf_variants=(*family.hf_variants, *variants),
        read_hf_config=read_hf_config,
    )


def find_part(families: list[Family], content: Mapping[str, Any]) -> Family:
    """Return the family of a larger model's text part, of those that the larger model's class may hold."""
    text = content.get("text_config")
    kind = text.get("model_type") if isinstance(text, Mapping) else None
    return next((family for family in families if family.name == kind), families[0])


def tied_as_stored(
    folder: Path, family: Family, content: Mapping[str, Any], config: DecoderConfig
) -> DecoderConfig:
    """Return the sizes with the output matrix as it is stored, where a larger model's config.json says nothing of it.

    Tools fill that in from classes of theirs, and then look at the weights as well.  # transformers, tie_weights
    """
    text = content.get("text_config")
    if not isinstance(text, Mapping) or any("tie_word_embeddings" in part for part in (content, text)):
        return config
    with suppress(CheckpointError):  # whoever loads the weights says what is wrong with them
        source = open_weights(folder)
        layout = find_layout(family, source)
        embedding = next(rule.theirs for rule in layout.rules if rule.ours == "tok_embeddings.weight")
        if embedding in source:
            is_apart = layout.tied_output in source and not same_bits(
                source.read(embedding), source.read(layout.tied_output)
            )
            return replace(config, tie_word_embeddings=not is_apart)
    return config


def _as_part(layout: Layout, outer: OuterModel, trunk: str, output: str) -> Layout:
    """Return the layout of a larger model's files, which name the decoder's tensors so."""

    def rename(name: str) -> str:
        return output if name == layout.tied_output else name.replace("model.", trunk, 1)

    return replace(
        layout,
        rules=tuple(replace(rule, theirs=rename(rule.theirs)) for rule in layout.rules),
        ignored=tuple(map(rename, layout.ignored)),
        tied_output=output,
        carried=(*layout.carried, *outer.carried),
        carried_of_sharing=tuple(map(rename, layout.carried_of_sharing)),
        outer=outer,
    )


def _read_part(content: Mapping[str, Any], outer: OuterModel, family: Family) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    text = {**outer.defaults, **fields.mapping(outer.text_config)}
    if fields.has("tie_word_embeddings"):  # the larger model's word counts
        text["tie_word_embeddings"] = fields.flag("tie_word_embeddings", False)
    if text.get("model_type", family.name) != family.name:
        fields.problem(
            f"`{outer.text_config}.model_type` is {str(text['model_type'])[:120]!r}, where {family.name!r} is expected"
        )
    refuse_quantized(fields)
    fields.ignore((*outer.fields, *HARMLESS_FIELDS))
    fields.finish()
    try:
        config = family.read_hf_config(text)
    except CheckpointError as error:
        raise CheckpointError(f"{outer.text_config} of {error}") from error
    say_once(outer.architecture)
    return config


@cache
def say_once(architecture: str) -> None:
    """Say what becomes of the other parts the first time, however often a file is looked at."""
    get_logger().info(
        f"{architecture}: the text model is used; the other parts are left as they are, and saved along with it"
    )
