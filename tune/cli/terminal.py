"""What the terminal can show: colour only where a person is looking and has not asked for none."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from tune.utils.escape import escape_lines

_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[1;31m",
    "yellow": "\x1b[1;33m",
    "blue": "\x1b[1;34m",
}
_RESET = "\x1b[0m"


def wants_color(stream: TextIO) -> bool:
    """Return whether to write colours to `stream` (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` in `style` where `stream` (standard output by default) shows it, else as it is."""
    return f"{_STYLES[style]}{text}{_RESET}" if text and wants_color(stream or sys.stdout) else text


def report_error(message: str) -> None:
    """Write one `error:` block to standard error."""
    _report("error", "red", message)


def report_warning(message: str) -> None:
    """Write one `warning:` block to standard error."""
    _report("warning", "yellow", message)


def _report(word: str, style: str, message: str) -> None:
    lines = escape_lines(message.strip()).split("\n")
    sys.stderr.write("\n".join([f"{paint(word + ':', style, sys.stderr)} {lines[0]}", *lines[1:]]) + "\n")
    sys.stderr.flush()


def wrap(text: str, columns: int) -> list[str]:
    """Return `text` broken at spaces into lines of at most `columns`; longer words stay whole."""
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)


def columns(rows: Iterable[Sequence[str]], *, indent: str = "  ", gap: int = 2) -> str:
    """Return rows of text as aligned columns; the last one is wrapped to the terminal, between 60 and 120 wide."""
    table = [list(row) for row in rows]
    if not table:
        return ""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    start = len(indent) + sum(widths) + gap * len(widths)
    room = max(20, max(60, min(120, shutil.get_terminal_size((100, 24)).columns)) - start)
    lines = []
    for row in table:
        left = indent + "".join(cell.ljust(size + gap) for cell, size in zip(row, widths))
        first, *others = wrap(row[-1], room) or [""]
        lines.append((left + first).rstrip())
        lines.extend(" " * start + other for other in others)
    return "\n".join(lines)


def section(heading: str, rows: Iterable[Sequence[str]]) -> str:
    """Return rows as columns below a heading."""
    return f"{paint(heading, 'bold')}\n{columns(rows)}"
