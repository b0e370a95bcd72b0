"""Rotary positions of families whose layers with and without a window turn differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import read_scaling, write_scaling
from tune.modules import DecoderConfig, ProportionalScaling, RopeScaling

_KINDS = ("full_attention", "sliding_attention")


def read_rope_by_kind(
    fields: ConfigFields, sizes: Mapping[str, Any], *, base: float, local_base: float
) -> dict[str, Any]:
    """Return base and scaling of the layers that see everything, and those of the layers with a window.

    They stand in `rope_parameters`, which has an entry for each kind; older files have `rope_theta` and `rope_scaling`
    for the layers that see everything, and `rope_local_base_freq` for the others.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
        base, local_base: what holds where the file is silent.
    """
    by_kind = ConfigFields(fields.mapping("rope_parameters"), "rope_parameters")
    full, local = (by_kind.mapping(kind) for kind in _KINDS)
    full = {**full, **fields.mapping("rope_scaling")}
    default_base = fields.number("rope_theta", base)
    default_local = fields.number("rope_local_base_freq", local_base)
    by_kind.note_in(fields)
    return _read_both(fields, sizes, (full, local), (default_base, default_local))


def read_rope_parameters(
    fields: ConfigFields, sizes: Mapping[str, Any], default: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the same of families that have never had them elsewhere than in `rope_parameters`.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
        default: what stands there where the file is silent; a file that is not says all.
    """
    given = fields.mapping("rope_parameters") or default
    by_kind = ConfigFields(given, "rope_parameters")
    both = tuple(by_kind.mapping(kind) for kind in _KINDS)
    by_kind.note_in(fields)
    return _read_both(fields, sizes, (both[0], both[1]), (None, None))


def _read_both(
    fields: ConfigFields,
    sizes: Mapping[str, Any],
    contents: tuple[Mapping[str, Any], Mapping[str, Any]],
    bases: tuple[float | None, float | None],
) -> dict[str, Any]:
    full, local = (
        _read_one(content, kind, fields, sizes, base)
        for content, kind, base in zip(contents, _KINDS, bases, strict=True)
    )
    return {
        "rope_base": full[0],
        "rope_scaling": full[1],
        "local_rope_base": local[0],
        "local_rope_scaling": local[1],
    }


def write_rope_by_kind(config: DecoderConfig) -> dict[str, Any]:
    """Return `rope_parameters` with an entry for each kind of layers."""
    kinds = (
        (config.rope_base, config.rope_scaling),
        (config.local_rope_base, config.local_rope_scaling),
    )
    entries = {
        kind: {
            "rope_theta": base,
            **({"rope_type": "default"} if scaling is None else write_scaling(scaling)),
        }
        for kind, (base, scaling) in zip(_KINDS, kinds, strict=True)
    }
    return {"rope_parameters": entries}


def _read_one(
    content: Mapping[str, Any],
    kind: str,
    fields: ConfigFields,
    sizes: Mapping[str, Any],
    base: float | None,
) -> tuple[float, RopeScaling | None]:
    inner = ConfigFields(content, f"rope_parameters.{kind}")
    if content.get("rope_type") == "proportional":
        inner.ignore(("rope_type",))
        share, factor = inner.number("partial_rotary_factor", 1.0), inner.number("factor", 1.0)
        base = inner.number("rope_theta", base)
        inner.note_in(fields)
        return base, ProportionalScaling(share, factor)
    inner.expect("partial_rotary_factor", 1.0, 1)
    inner.expect(
        "truncate",
        True,
        advice="transformers reads past it where layers differ, so what the weights know is open",
    )
    found = inner.number("rope_theta", base), read_scaling(inner, fields, sizes["max_seq_len"])
    inner.note_in(fields)
    return found
