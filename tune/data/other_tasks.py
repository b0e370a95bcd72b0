"""Rows of other tasks than learning answers: recognised, so that a bad answer is never learnt as a good one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tune.data.columns import LEARNT_BY, PREFERENCE_PAIRS
from tune.data.rows import describe
from tune.data.values import is_empty
from tune.errors import DataError

_JUDGED = ("label", "kto_tag")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_IGNORE = "dataset.ignore_columns=[{}]"


def refuse_other_task(row: Mapping[str, Any], used: Collection[str | None], learn_chosen: str) -> list[str]:
    """Return the names of columns that say nothing more than that the row is a good one.

    Args:
        row: column name to value.
        used: columns that are read.
        learn_chosen: the settings that learn from good answers alone, with `{chosen}` for their column.

    Raises:
        DataError: the row holds a preference pair, an answer judged bad, or pictures, videos or sounds.
    """
    for chosen, rejected in PREFERENCE_PAIRS:
        if (
            not {chosen, rejected} & set(used)
            and not is_empty(row.get(chosen))
            and not is_empty(row.get(rejected))
        ):
            raise DataError(
                f"has {chosen!r} and {rejected!r}: a preference pair, which this recipe does not learn from: "
                f"{LEARNT_BY}. {learn_chosen.format(chosen=chosen)} learns the {chosen} answers alone, "
                f"{_IGNORE.format(rejected)} what the other columns hold"
            )
    good = []
    for name in _JUDGED:
        if name in used:
            continue
        verdict = row.get(name)
        if verdict is False or (isinstance(verdict, str) and verdict.strip().lower() == "false"):
            raise DataError(
                f"has {describe(verdict)} as {name}: an answer judged bad, as unpaired preferences (KTO) have them, "
                f"from which this recipe does not learn: {LEARNT_BY}. dataset.on_bad_rows=drop leaves these out and "
                f"learns the rest; where {name} means something else, {_IGNORE.format(name)}"
            )
        if verdict is True or (isinstance(verdict, str) and verdict.strip().lower() == "true"):
            good.append(name)
    for name in MEDIA:
        if name not in used and not is_empty(row.get(name)):
            raise DataError(
                f"has {describe(row[name])} as {name}, and only text is read. {_IGNORE.format(name)} learns the "
                "text alone, dataset.on_bad_rows=drop leaves such rows out"
            )
    return good
