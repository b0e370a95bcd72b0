"""The frame of a page, and its smaller parts: one file that loads nothing, and says so to the browser."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from tune.checkpoints.writers import replacing
from tune.errors import TuneError
from tune.report.curves import Chart, draw_chart, legend
from tune.utils.escape import escape_lines

__all__ = ["badge", "commands", "draw_charts", "table", "text", "tile", "write_page"]

_HERE = Path(__file__).parent
_OURS = '<meta name="generator" content="tune report">'
_MAX_FOLDED = 200
_CELL, _WIDE = (420, 240), (1180, 320)


def text(value: object) -> str:
    """Return text from anywhere as HTML that shows it: nothing in it is markup, nor disturbs what is around it."""
    return escape(escape_lines(value))


def tile(name: str, value: str) -> str:
    """Return one figure of a run with its name."""
    return f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>'


def badge(status: str) -> str:
    """Return how a run stands as a mark beside its name."""
    shade = {"finished": "good", "failed": "bad", "killed": "bad"}.get(status, "soft")
    return f'<span class="badge {shade}">{text(status)}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], kinds: Sequence[str] = ()) -> str:
    """Return rows as a table; `kinds` are the classes of its columns: name, number, text."""
    kinds = [*kinds, *[""] * (len(head) - len(kinds))]
    first = "".join(f'<th class="{kind}">{text(name)}</th>' for name, kind in zip(head, kinds))
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{text(cell)}</td>' for cell, kind in zip(row, kinds)) + "</tr>"
        for row in rows
    )
    return f'<div class="card scroll"><table><tr>{first}</tr>{body}</table></div>\n'


def commands(rows: Iterable[tuple[str, str]]) -> str:
    """Return what can be typed next, each with what it does."""
    return "".join(f"<p>{text(what)}</p><pre>{text(command)}</pre>" for what, command in rows)


def draw_charts(charts: Sequence[Chart], num_open: int | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Return charts as HTML, the first one as wide as the page, and what the script is to know of each drawing.

    Args:
        charts: those without a point are left out.
        num_open: the further ones are folded up; None for none of them.
    """
    about: list[dict[str, Any]] = []
    seen, folded = (
        [chart for chart in some if not chart.is_empty]
        for some in (charts[:num_open], charts[len(charts) if num_open is None else num_open :])
    )
    parts = [_card(chart, about) for chart in seen]
    page = f'<div class="charts">{"".join(parts)}</div>\n' if parts else ""
    if folded:
        left = f", of which {_MAX_FOLDED} are drawn" if len(folded) > _MAX_FOLDED else ""
        cards = "".join(_card(chart, about) for chart in folded[:_MAX_FOLDED])
        number = f"{len(folded):,} further curve{'s' * (len(folded) > 1)}{left}"
        page += f'<details><summary>{number}</summary><div class="charts">{cards}</div></details>\n'
    return page, about


def _card(chart: Chart, about: list[dict[str, Any]]) -> str:
    drawings, is_first = [], not about
    for size, kind in [(_WIDE, "wide"), (_CELL, "narrow")] if is_first else [(_CELL, "")]:
        svg, known = draw_chart(chart, len(about), *size)
        about.append(known)
        drawings.append(f'<div class="{kind}">{svg}</div>')
    title = f"<h3>{text(chart.title)}</h3>{legend(chart)}"
    return f'<div class="card{" first" * is_first}">{title}{"".join(drawings)}</div>'


@lru_cache(maxsize=1)
def _frame() -> tuple[str, str]:
    """Return what stands before the title of a page, and what stands at its end."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    allowed = f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'"
    head = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_OURS}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style>\n'
    )
    return head, f"<script>{script}</script></body></html>\n"


def _hash(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def write_page(path: Path, title: str, body: str, curves: Sequence[Any]) -> None:
    """Write a page, whole or not at all.

    Raises:
        TuneError: it cannot be written, or a file of its name is no such page.
    """
    head, end = _frame()
    # Within a script nothing is escaped: a name could end it.
    data = json.dumps(curves, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = (
        f'{head}<title>{text(title)}</title></head><body>\n{body}<div id="tip" hidden></div>\n'
        f'<script type="application/json" id="curves">{data}</script>\n{end}'
    )
    require_own(path, _OURS.encode())
    try:
        with replacing(path) as staged:
            staged.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise TuneError(f"{path} cannot be written: {error.strerror}") from error


def require_own(path: Path, mark: bytes) -> None:
    """Refuse to write over a file that does not have `mark` near its beginning.

    Raises:
        TuneError: it has not, or cannot be read.
    """
    try:
        if path.is_dir():
            raise TuneError(f"{path} is a folder, and no report is written in its place")
        if not path.exists():
            return
        with path.open("rb") as stream:
            if mark in stream.read(600):
                return
    except OSError as error:
        raise TuneError(f"{path} cannot be read: {error.strerror}") from error
    raise TuneError(
        f"{path} is none of tune's reports, so it is left as it is; move it away or name another file"
    )
