"""What the terminal can show: colour only where a person is looking and has not asked for none."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from tune.utils.escape import escape_control, escape_lines
from tune.utils.logging import note_console

_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[1;31m",
    "yellow": "\x1b[1;33m",
    "reverse": "\x1b[7m",
    "learnt": "\x1b[4;32m",  # underlined, for those who see no colours
}
_MIN_ROOM = 24  # columns that are worth writing a text in
_RESET = "\x1b[0m"
_OURS = re.compile("(" + "|".join(map(re.escape, (*_STYLES.values(), _RESET))) + ")")


def wants_color(stream: TextIO) -> bool:
    """Return whether to write colours to `stream` (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` in `style` where `stream` (standard output by default) shows it, else as it is."""
    return f"{_STYLES[style]}{text}{_RESET}" if text and wants_color(stream or sys.stdout) else text


def say(text: str, stream: TextIO | None = None) -> None:
    """Write `text` to standard output (or `stream`): what every command prints, names from strangers' files included.

    Control characters are spelt out, but for line ends, tabs, and the colours of `paint` where they are shown.
    """
    stream = stream or sys.stdout
    parts = _OURS.split(text) if wants_color(stream) else [text]
    stream.write("".join(part if place % 2 else escape_lines(part) for place, part in enumerate(parts)))
    stream.flush()
    if stream is sys.stderr:
        note_console(escape_lines("".join(_OURS.split(text)[::2]).rstrip("\n")))


def report_error(message: str) -> None:
    """Write one `error:` block to standard error."""
    _report("error", "red", message)


def report_warning(message: str) -> None:
    """Write one `warning:` block to standard error."""
    _report("warning", "yellow", message)


def _report(word: str, style: str, message: str) -> None:
    say(f"{paint(word + ':', style, sys.stderr)} {message.strip()}\n", sys.stderr)


def width() -> int:
    """Return the columns there are to write in, between 20 and 120: also where a pager shows what is written."""
    asked = os.environ.get("COLUMNS", "")
    found = int(asked) if asked.isdecimal() else 0
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = found or os.get_terminal_size(stream.fileno()).columns  # type: ignore[union-attr]
    return max(20, min(120, found or 100))


def wrap(text: str, columns: int) -> list[str]:
    """Return `text` broken at spaces into lines of at most `columns`; longer words stay whole."""
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)


def wrap_usage(command_line: str) -> str:
    """Return how a command is used, wrapped; what stands in brackets stays together where it has room."""
    room = min(width(), 96)
    bound = re.sub(
        r"\[[^]]*\]",
        lambda found: found[0].replace(" ", "\xa0") if len(found[0]) <= room else found[0],
        command_line,
    )
    text = "\n".join(wrap(f"usage: {bound}", room)).replace("\xa0", " ")
    return f"{paint('usage:', 'bold')}{text.removeprefix('usage:')}"


def command_line(line: str) -> str:
    """Return a command line, indented; one that is too long goes on in further lines, as a shell reads it."""
    pieces = [line] if len(line) <= width() - 2 else wrap(line, width() - 4)
    return "  " + " \\\n  ".join(pieces)


def example(line: str, meaning: str) -> str:
    """Return a command line below what it does."""
    said = (f"  {paint('# ' + each, 'dim')}" for each in wrap(meaning, width() - 4))
    return "\n".join([*said, command_line(line)])


def columns(rows: Iterable[Sequence[str]], *, indent: str = "  ", gap: int = 2) -> str:
    """Return rows of text as aligned columns, the last one wrapped to the terminal; below, where that is too narrow."""
    table = [list(row) for row in rows]
    if not table:
        return ""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    start = len(indent) + sum(widths) + gap * len(widths)
    is_narrow = width() - start < _MIN_ROOM
    if is_narrow:
        start = len(indent) + 4
    room = max(width() - start, 1)
    lines = []
    for row in table:
        left = indent + "".join(cell.ljust(size + gap) for cell, size in zip(row, widths))
        first, *others = wrap(row[-1], room) or [""]
        if is_narrow and first:
            heads = [left.rstrip()]
            if len(heads[0]) > width():
                heads = [indent + each for each in wrap(" ".join(row[:-1]), width() - len(indent))]
            lines += heads[:-1]
            left, first, others = (heads or [""])[-1], "", [first, *others]
        lines.append((left + first).rstrip())
        lines.extend(" " * start + other for other in others)
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as columns below a line that names these."""
    first, *others = columns([head, *rows], indent="").split("\n")
    return "\n".join([paint(first, "bold"), *others])


def section(heading: str, rows: Iterable[Sequence[str]]) -> str:
    """Return rows as columns below a heading."""
    return f"{paint(heading, 'bold')}\n{columns(rows)}"


def format_size(num_bytes: int) -> str:
    """Return a size as people read it: "12.6 GB", "609 B"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def file_lines(num_files: int) -> Callable[[str], None]:
    """Return what writes a numbered line for each file that is done, given its name and what is to say of it."""
    numbers = itertools.count(1)

    def tell(file: str) -> None:
        say(f"  [{next(numbers)}/{num_files}] {escape_control(file)}\n", sys.stderr)

    return tell
