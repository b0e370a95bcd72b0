"""How a part of a data source is named: `train`, `train[:500]`, `train[90%:]`."""

from __future__ import annotations

import re

from tune.errors import ConfigError

_SPLIT = re.compile(r"(?P<name>[\w.+-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(text: str) -> tuple[str, str | None, str | None]:
    """Return the name of a split, and where its range begins and ends; None where it does not say.

    Raises:
        ConfigError: the text is no split.
    """
    found = _SPLIT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"dataset.split {text!r} is not understood; write a name, or a name with a range: "
            "train, train[:500], train[90%:]"
        )
    return found["name"], found["start"], found["stop"]
