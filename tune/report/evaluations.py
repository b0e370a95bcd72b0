"""Evaluations in the folder of a run: their tables, as scores.json has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune.report.html import table, text

__all__ = ["show_evaluations"]

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
