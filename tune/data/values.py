"""Values of a row as text, and what counts as none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from tune.data.columns import list_names
from tune.data.rows import describe
from tune.errors import DataError
from tune.utils.escape import escape_control

NUMBERS_AS_TEXT = "numbers read as text, as Python writes them (7, 0.5)"
# More digits than that are no answer.
_LARGEST = 10**20


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing: null, no text, or no more than these in a list or an object."""
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, float):
        return math.isnan(value)  # which tables have for null
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return all(item is None or (isinstance(item, str) and not item) for item in items)
    return False


def without(row: Mapping[str, Any], ignored: Collection[str]) -> Mapping[str, Any]:
    """Return a row without the columns that shall not be read."""
    return {name: value for name, value in row.items() if name not in ignored} if ignored else row


def unused_columns(row: Mapping[str, Any], used: Collection[str | None]) -> list[str]:
    """Return the columns of a row that say something and are not among those used, as reports name them."""
    free = (name for name, value in row.items() if name not in used and not is_empty(value))
    return [f"column {escape_control(name, 60)}" for name in free]


def as_text(value: Any, what: str, notes: Counter[str]) -> str:
    """Return a text, or the text of a number, which is counted in `notes`. Raises DataError: "`what` is ...".

    A truth value is none: it is written in too many ways.
    """
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if is_number and abs(value) < _LARGEST:  # no NaN is
        notes[NUMBERS_AS_TEXT] += 1
        return str(value)
    hint = ""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        hint = ". It looks like messages: read them with chat_dataset (in a config: dataset=chat)"
    elif isinstance(value, bool):
        hint = "; write the word that is meant, such as yes or true, as text"
    elif isinstance(value, list | tuple):
        hint = "; of several texts the data must say which one is meant"
    raise DataError(f"{what} is {describe(value)}, expected text{hint}")


def column_text(row: Mapping[str, Any], column: str, notes: Counter[str]) -> str:
    """Return the text of a column. Raises DataError where there is none."""
    if column not in row:
        raise DataError(f"has no column {column!r} (it has {list_names(list(map(str, row)))})")
    return as_text(row[column], f"column {column!r}", notes)


def optional_text(row: Mapping[str, Any], column: str | None, notes: Counter[str]) -> str:
    """Return the text of a column, "" where the row leaves it out or has none."""
    if column is None or is_empty(row.get(column)):
        return ""
    return as_text(row[column], f"column {column!r}", notes)


def weigh(values: Any) -> int:
    """Return about how many bytes of memory a row's values take."""
    weight, held = 0, [values]
    while held:
        value = held.pop()
        weight += 64
        if isinstance(value, Mapping):
            held += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            held += value
        elif isinstance(value, str | bytes):
            weight += len(value)
    return weight
