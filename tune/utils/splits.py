"""How a part of a data source is named: `train`, `train[:500]`, `train[90%:]`."""

from __future__ import annotations

import re

from tune.errors import ConfigError
from tune.utils.escape import escape_control

# Fits into 64 bits, with a sign.
_MAX_DIGITS = 18
_SPLIT = re.compile(r"(?P<name>[\w.+-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(text: str) -> tuple[str, str | None, str | None]:
    """Return the name of a split, and where its range begins and ends; None where it does not say.

    Raises:
        ConfigError: the text is no split.
    """
    found = _SPLIT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"dataset.split {escape_control(text, 100)!r} is not understood; write a name, or a name with a range: "
            "train, train[:500], train[90%:]"
        )
    start, stop = _bound(text, found["start"]), _bound(text, found["stop"])
    if start and stop and start.endswith("%") == stop.endswith("%"):
        first, last = int(start.rstrip("%")), int(stop.rstrip("%"))
        if first >= last and (first < 0) == (last < 0):
            raise ConfigError(
                f"dataset.split {escape_control(text, 100)!r} is empty: it begins at {start[:20]} and ends at "
                f"{stop[:20]}"
            )
    return found["name"], start, stop


def _bound(text: str, bound: str | None) -> str | None:
    """Return one end of a range. Raises ConfigError for a percentage that no dataset has."""
    if bound is None:
        return None
    number = bound.rstrip("%")
    if len(number) > _MAX_DIGITS:  # beyond the end of any dataset
        number = ("-" if number.startswith("-") else "") + "9" * (_MAX_DIGITS - 1)
    if bound.endswith("%") and abs(int(number)) > 100:
        raise ConfigError(
            f"dataset.split {escape_control(text, 100)!r} names {escape_control(bound, 20)} of the rows; a percentage "
            "is at most 100"
        )
    return number + "%" * bound.endswith("%")
