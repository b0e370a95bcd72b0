"""What other tools call things, from `foreign_names.yaml`: read only on the way to an error."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ForeignNames:
    """What other tools' names probably meant.

    Args:
        renamed: for each of their names ours, first the one to prefer; dotted for an argument of a component.
        values: for our name what each of theirs sets it to: `fp16: true` means `dtype: fp16`; by their value where they
            have others than true.
        absent: for each name of something that is not here what to do about it.
        components: for each kind of slot what their components are called here; "" is something that is not here.
    """

    renamed: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Mapping[str, Mapping[str, str]]]
    absent: Mapping[str, str]
    components: Mapping[str, Mapping[str, str]]


@functools.cache
def foreign_names() -> ForeignNames:
    """Return the tables; a name is written there once, below what it means."""
    import yaml

    tables = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return ForeignNames(
        renamed={
            name: tuple(ours.split(", ")) for ours, names in tables["renamed"].items() for name in names
        },
        values={
            ours: {
                name: value if isinstance(value, dict) else {"true": value} for name, value in theirs.items()
            }
            for ours, theirs in tables["values"].items()
        },
        absent={
            name: advice.replace("{name}", name)
            for advice, names in tables["absent"].items()
            for name in names
        },
        components=tables["components"],
    )
