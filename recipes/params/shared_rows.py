"""Rows that are both learnt and validated on, as far as a configuration and the files it names can tell."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tune.config.component import Component
from tune.errors import ConfigError
from tune.utils.paths import expand_path
from tune.utils.splits import parse_split

# What else names the rows of a dataset beside its source and split.
_PLACE = ("data_files", "name", "subset", "revision", "field")
_MANY_ROWS = 1e15


def warn_of_shared_rows(
    dataset: Component | tuple[Component, ...], dataset_val: Component | tuple[Component, ...] | None
) -> Iterator[str]:
    """Yield a sentence for each dataset to learn that has rows in common with one to validate on."""
    for learnt in _components(dataset):
        for held in _components(dataset_val):
            if (same := _same_source(learnt, held)) and _ranges_meet(learnt, held):
                yield (
                    f"warning: dataset and dataset_val read the same rows of {same}: a loss on what is learnt does not "
                    "show whether the model generalises. Keep them apart, for example with "
                    "dataset.split=train[:95%] and dataset_val.split=train[95%:]"
                )


def _components(value: Component | tuple[Component, ...] | None) -> tuple[Component, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _same_source(learnt: Component, held: Component) -> str:
    """Return the source of two datasets where it is the same, or a file with the same content, else ""."""
    # Without a source both read the one their builder has.
    one, other = learnt.kwargs.get("source", learnt.path), held.kwargs.get("source", held.path)
    if not isinstance(one, str) or not isinstance(other, str):
        return ""
    if any(learnt.kwargs.get(part) != held.kwargs.get(part) for part in _PLACE):
        return ""
    if one == other:
        return one
    try:
        first, second = expand_path(one), expand_path(other)
        return f"{one} and {other}" if _have_same_content(first, second) else ""
    except (ConfigError, OSError, ValueError):  # reading the data says what is wrong with them
        return ""


def _have_same_content(first: Path, second: Path) -> bool:
    if not first.exists() or not second.exists():
        return False
    return first.samefile(second) or (
        first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)
    )


def _ranges_meet(learnt: Component, held: Component) -> bool:
    """Return whether two splits of one source have rows in common, where their text tells."""
    name, *one = _split_of(learnt)
    other_name, *other = _split_of(held)
    units = {"%" in bound for bound in (*one, *other) if bound}
    if name != other_name or len(units) > 1:
        return False
    total = 100.0 if units == {True} else _MANY_ROWS
    (first, last), (start, stop) = _interval(one, total), _interval(other, total)
    return first < stop and start < last


def _split_of(dataset: Component) -> tuple[Any, ...]:
    split = dataset.kwargs.get("split", "train")
    try:
        return parse_split(split) if isinstance(split, str) else (split, None, None)
    except ConfigError:
        return (split, None, None)


def _interval(bounds: list[str | None], total: float) -> tuple[float, float]:
    """Return where a range begins and ends; what is negative counts from the end."""
    start, stop = (None if bound is None else float(bound.rstrip("%")) for bound in bounds)
    first, last = start or 0.0, total if stop is None else stop
    return first + total * (first < 0), last + total * (last < 0)
