"""Diagnostics: what is wrong, where it stands, and what to write instead.

A diagnostic has a stable code, the dotted path it concerns, a sentence that can stand alone, a place, and, where one
is known, a suggestion: the text that may replace what the place points at (a key for a key, a value for a value).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.utils.escape import escape_control

_MAX_SNIPPET = 110
# Far above what is written on purpose: a long key or value of a file must not become a page of message.
_MAX_MESSAGE, _MAX_PATH = 1500, 300
_MAX_SHOWN, _MAX_REPORT = 200, 60_000  # problems, and characters of all of them
_RED, _YELLOW, _BLUE, _BOLD, _RESET = "\x1b[1;31m", "\x1b[1;33m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Source:
    """Where a value comes from.

    Args:
        kind: "file", "cli", "default" (declared by the params), or "python" (given to a constructor).
        file: the file's name as it was given.
        line: line in the file, from 1.
        col: column in the line (or in the argument), from 1.
        arg: the command-line argument.
        index: position of the argument on the command line, for sorting.
        length: characters the caret underlines.
    """

    kind: str
    file: str | None = None
    line: int | None = None
    col: int | None = None
    arg: str | None = None
    index: int = 0
    length: int = 1

    def describe(self) -> str:
        """The place in a few words: "config.yaml:3:7"."""
        if self.kind == "file":
            places = [str(self.file), *(str(n) for n in (self.line, self.col) if n is not None)]
            return printable(":".join(places))
        if self.kind == "cli":
            return f"command line: {shorten(printable(self.arg), 60)}" if self.arg else "command line"
        return self.kind

    def to_json(self) -> dict[str, Any]:
        """The place as ``--json`` writes it."""
        if self.kind != "file":
            return {"kind": "cli", "file": None, "line": None, "col": None}
        return {"kind": "file", "file": self.file, "line": self.line, "col": self.col}

    def sort_key(self) -> tuple[int, int, int, int]:
        order = {"file": 0, "cli": 1}.get(self.kind, 2)
        return order, self.line or 0, self.index, self.col or 0


DEFAULT = Source("default")
PYTHON = Source("python")


@dataclass(frozen=True)
class Diagnostic:
    """One problem (or warning) with a configuration.

    Args:
        code: stable identifier, such as ``unknown-key``.
        path: dotted path of the value concerned, as the user wrote it; "" for the configuration as a whole.
        message: the fact and the fix, in a sentence that can stand alone.
        source: where it stands; what is found without knowing the place gets one later, by `replace`.
        suggestion: text that may replace what `source` points at.
        shadows: place and text of the value this one overrides, if any.
        severity: "error" or "warning".
        fields: of a problem between several fields all that are concerned, the one to change first.
    """

    code: str
    path: str
    message: str
    source: Source = PYTHON
    suggestion: str | None = None
    shadows: str | None = None
    severity: str = "error"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, limit in (("message", _MAX_MESSAGE), ("path", _MAX_PATH), ("shadows", _MAX_PATH)):
            if len(getattr(self, name) or "") > limit:
                object.__setattr__(self, name, shorten(getattr(self, name), limit))
        if len(self.suggestion or "") > _MAX_PATH:  # cut, it could replace nothing
            object.__setattr__(self, "suggestion", None)

    def __str__(self) -> str:
        reads_on = not self.path or self.message.startswith(f"{self.path} ")
        return self.message if reads_on else f"{self.path}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """The diagnostic as ``--json`` writes it."""
        return {
            "code": self.code,
            "path": self.path,
            "message": self.message,
            "source": self.source.to_json(),
            "suggestion": self.suggestion,
        }


def problem(
    message: str, fields: tuple[str, ...] = (), code: str = "inconsistent", suggestion: str | None = None
) -> Diagnostic:
    """Return what is wrong with a params object, for its `cross_checks` to yield.

    Args:
        message: what is wrong and how to mend it. It reads on from the first field's name:
            "needs dataset_val: there is nothing to validate on".
        fields: the fields concerned, the one to change first; dotted for a component's argument.
        code: stable code of the diagnostic.
        suggestion: text that can replace the value as it stands, or None.
    """
    whole = f"{fields[0]} {message}" if fields else message
    return Diagnostic(code, fields[0] if fields else "", whole, suggestion=suggestion, fields=fields)


def printable(text: object) -> str:
    """`text` with what would disturb a terminal (control and direction characters, lone surrogates) spelt out."""
    return escape_control(text)


def shorten(text: str, limit: int = 60) -> str:
    """`text`, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def quote(text: str, limit: int = 60) -> str:
    """`text` in quotes, fit for a message: printable and short."""
    return "'" + shorten(printable(text), limit) + "'"


def ordered(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The diagnostics by position (file, then command line, then the rest), without repetitions."""
    return sorted(dict.fromkeys(diagnostics), key=lambda item: (item.source.sort_key(), item.path))


def bounded(diagnostics: list[Diagnostic]) -> list[Diagnostic]:
    """The first of `diagnostics`, and a last one that counts the rest: nobody reads thousands."""
    size = 0
    for count, item in enumerate(diagnostics):
        size += len(item.message) + len(item.path) + len(item.suggestion or "") + len(item.shadows or "")
        if count == _MAX_SHOWN or size > _MAX_REPORT:
            code = f"more-{item.severity}s"
            message = f"and {len(diagnostics) - count} more {item.severity}s from here on"
            return [*diagnostics[:count], Diagnostic(code, "", message, item.source, severity=item.severity)]
    return diagnostics


def to_json(errors: Sequence[Diagnostic], warnings: Sequence[Diagnostic]) -> dict[str, Any]:
    """The result of a validation in the form of ``tune validate --json``."""
    return {
        "version": 1,
        "ok": not errors,
        "errors": [item.to_json() for item in errors],
        "warnings": [item.to_json() for item in warnings],
    }


def render_all(
    diagnostics: Sequence[Diagnostic], files: Mapping[str, Sequence[str]], *, color: bool = False
) -> str:
    """All diagnostics as text, each with its line and a caret, and a count at the end.

    Args:
        diagnostics: in the order to print them.
        files: the lines of each file by its name.
        color: whether to use terminal colours.
    """
    blocks = [render(item, files, color=color) for item in diagnostics]
    counts = []
    for severity in ("error", "warning"):
        count = sum(item.severity == severity for item in diagnostics)
        if count:
            counts.append(f"{count} {severity}{'s' if count > 1 else ''}")
    if counts:
        blocks.append(", ".join(counts))
    return "\n\n".join(blocks)


def render(item: Diagnostic, files: Mapping[str, Sequence[str]], *, color: bool = False) -> str:
    """One diagnostic as text."""

    def paint(text: str, style: str) -> str:
        return f"{style}{text}{_RESET}" if color else text

    tone = _RED if item.severity == "error" else _YELLOW
    lines = [f"{paint(f'{item.severity}[{item.code}]', tone)}: {paint(printable(item.message), _BOLD)}"]
    source = item.source
    line = source.arg
    if source.file is not None and source.line is not None and source.col is not None:
        line = next(iter(files.get(source.file, ())[source.line - 1 : source.line]), None)
    if source.file or source.arg:
        place = "command line" if source.kind == "cli" else source.describe()
        lines.append(f"  {paint('-->', _BLUE)} {place}")
    if line is not None:
        text, caret = _snippet(line, source.col or 1, source.length)
        bar = paint("|", _BLUE)
        lines.append(f"  {paint(str(source.line or '').rjust(4), _BLUE)} {bar} {text}")
        lines.append(f"       {bar} {paint(caret, tone)}")
    if item.suggestion is not None:
        lines.append(f"       {paint('=', _BLUE)} suggestion: {printable(item.suggestion)}")
    if item.shadows:
        lines.append(f"       {paint('=', _BLUE)} it overrides {printable(item.shadows)}")
    return "\n".join(lines)


def _snippet(line: str, col: int, length: int) -> tuple[str, str]:
    """A line and the caret under it, cut to a readable width around the caret."""
    start = max(0, col - 1)
    offset = 0
    if len(line) > _MAX_SNIPPET:
        offset = max(0, min(start - 30, len(line) - _MAX_SNIPPET))
        line = line[offset : offset + _MAX_SNIPPET]
    before = printable(line[: start - offset].replace("\t", " "))
    marked = line[start - offset :]
    width = max(1, min(length, len(marked)))
    carets = len(printable(marked[:width].replace("\t", " "))) or 1
    head = "..." if offset else ""
    text = head + before + printable(marked.replace("\t", " "))
    return text.rstrip(), " " * (len(head) + len(before)) + "^" * carets
