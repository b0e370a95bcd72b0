"""Evaluations in the folder of a run: their tables, as scores.json has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune.report.html import table, text

__all__ = ["show_evaluations", "show_evaluations_beside"]

_MAX_BYTES = 5_000_000
_MAX_SHOWN, _MAX_ROWS = 20, 200


def show_evaluations(run: Path) -> str:
    """Return the evaluations of a run as HTML, the newest first; "" where there are none."""
    found = sorted(_read(run / "evaluations"), key=lambda each: str(each[1].get("time", "")), reverse=True)
    parts = []
    for name, result in found[:_MAX_SHOWN]:
        against = f", beside {result['against']}" if result.get("against") else ""
        about = f"{str(result.get('time', ''))[:19].replace('T', ' ')} · {result.get('data', '')}{against}"
        parts.append(f'<h3>{text(name)}</h3>\n<p class="soft">{text(about)}</p>\n')
        for head, rows in _tables(result):
            parts.append(table(head, rows, ("name", *["number"] * (len(head) - 1))))
        parts += [f"<p>{text(note)}</p>\n" for note in _texts(result.get("notes"))]
    return "<h2>Evaluations</h2>\n" + "".join(parts) if parts else ""


def show_evaluations_beside(runs: Sequence[Path], names: Sequence[str]) -> str:
    """Return the scores of several runs on the same data, side by side, as HTML; "" where no two share any.

    Of each run it is the newest evaluation on that data.

    Args:
        runs: their folders.
        names: what they are called.
    """
    tables: dict[str, dict[int, dict[str, Any]]] = {}
    for place, run in enumerate(runs):
        for _, result in sorted(_read(run / "evaluations"), key=lambda each: str(each[1].get("time", ""))):
            tables.setdefault(str(result.get("data_id") or result.get("data")), {})[place] = result
    shared = [found for found in tables.values() if len(found) > 1]
    parts = [_side_by_side(found, names) for found in shared[:_MAX_SHOWN]]
    note = '<p class="soft">In brackets: 95% interval. tune eval RUN --against OTHER compares example by example.</p>\n'
    return "<h2>Evaluations</h2>\n" + note + "".join(parts) if parts else ""


def _side_by_side(found: dict[int, dict[str, Any]], names: Sequence[str]) -> str:
    """Return a table: a row for each score, a column for each run, and how far the others are from the first."""
    places = sorted(found)
    scores = [_mapping(_mapping(found[place].get("all")).get("scores")) for place in places]
    shares = {name for place in places for name in _texts(found[place].get("shares"))}
    rows: list[list[str]] = []
    for name in list(dict.fromkeys(name for each in scores for name in each))[:_MAX_ROWS]:
        values = [_number(_mapping(each.get(name)).get("value")) for each in scores]
        cells = [_cell(_mapping(each.get(name)), name in shares) for each in scores]
        apart = [
            "-" if value is None or values[0] is None else _figure(value - values[0], name in shares, "+")
            for value in values[1:]
        ]
        rows.append([str(name), *cells, *apart])
    counts = [_mapping(found[place].get("all")).get("num_examples") for place in places]
    if any(isinstance(count, int) for count in counts):
        rows.append(["examples", *(str(count) for count in counts), *[""] * (len(places) - 1)])
    first, *others = (names[place] for place in places)
    apart = ["difference"] if len(others) == 1 else [f"{name} less {first}" for name in others]
    told = ["interrupted" for place in places if found[place].get("is_complete") is False]
    if len(set(map(str, counts))) > 1:
        told.append("not the same number of examples")
    heading = f"<h3>{text(found[places[0]].get('data', ''))}</h3>\n"
    warned = f'<div class="warning">{text("; ".join(dict.fromkeys(told)))}</div>\n' if told else ""
    return (
        heading
        + warned
        + table(["", first, *others, *apart], rows, ("name", *["number"] * (2 * len(places) - 1)))
    )


def _cell(score: Mapping[str, Any], is_share: bool) -> str:
    value, low, high = (_number(score.get(name)) for name in ("value", "low", "high"))
    if value is None:
        return "-"
    interval = (
        "" if low is None or high is None else f" ({_figure(low, is_share)} to {_figure(high, is_share)})"
    )
    return _figure(value, is_share) + interval


def _figure(value: float, is_share: bool, sign: str = "") -> str:
    return (
        f"{value:{sign}.1%}"
        if is_share
        else f"{value:{sign},.4g}"
        if abs(value) >= 100
        else f"{value:{sign}.4f}"
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with suppress(OSError):
        for file in folder.glob("*/scores.json"):
            # A link in a folder from elsewhere could bring a file of one's own into a page that is sent on.
            if file.is_symlink() or file.parent.is_symlink() or file.stat().st_size > _MAX_BYTES:
                continue
            with suppress(ValueError, RecursionError):
                result = json.loads(file.read_bytes())
                if isinstance(result, dict) and "tune_evaluation" in result:
                    yield file.parent.name, result


def _tables(result: dict[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    tables = result.get("tables")
    for each in tables if isinstance(tables, list) else ():
        if not isinstance(each, dict):
            continue
        head, rows = _texts(each.get("head")), each.get("rows")
        if head and isinstance(rows, list):
            yield head, [_texts(row)[: len(head)] for row in rows[:_MAX_ROWS]]


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
