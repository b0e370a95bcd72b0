"""What a YAML reader's complaints mean in the words of someone who wrote a configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tune.config.diagnostics import printable
from tune.config.reading import split_lines

# (part of the reader's problem, part of its context, whether the context's place is the better one, code, our words)
_WORDS: tuple[tuple[str, str, bool, str, str], ...] = (
    ("end of stream", "quoted scalar", True, "unclosed", "this quote is never closed"),
    ("document indicator", "quoted scalar", True, "unclosed", "this quote is never closed"),
    ("',' or ']'", "", True, "unclosed", "this list is not closed: a ] or a comma is missing"),
    ("',' or '}'", "", True, "unclosed", "this mapping is not closed: a } or a comma is missing"),
    ("expected the node content", "flow sequence", True, "unclosed", "this list is not closed: ] is missing"),
    (
        "expected the node content",
        "flow mapping",
        True,
        "unclosed",
        "this mapping is not closed: } is missing",
    ),
    (
        "escape character",
        "",
        False,
        "yaml-syntax",
        "a backslash in double quotes starts an escape, and this is none; use single quotes",
    ),
    (
        "mapping values are not allowed",
        "",
        False,
        "yaml-syntax",
        "a ': ' is not allowed here; quote the value if it contains one, or mend the indentation",
    ),
    (
        "expected ':'",
        "",
        True,
        "yaml-syntax",
        "this is no entry: a colon and a space are missing after the name",
    ),
    (
        "block sequence entries are not allowed",
        "",
        False,
        "yaml-syntax",
        "a list item (- ...) is not allowed here; start the list on a line of its own",
    ),
    (
        "expected '-' indicator",
        "",
        False,
        "yaml-syntax",
        "this does not continue the list above it: every item starts with '- ' at the same indentation",
    ),
    (
        "expected <block end>",
        "block sequence",
        False,
        "yaml-syntax",
        "this does not continue the list above it: every item starts with '- ' at the same indentation",
    ),
    (
        "expected key",
        "",
        False,
        "yaml-syntax",
        "this does not continue the mapping above it: entries of a mapping share one indentation",
    ),
    (
        "expected <block end>",
        "",
        False,
        "yaml-syntax",
        "this does not continue the mapping above it: entries of a mapping share one indentation",
    ),
    (
        "expected <document start>",
        "",
        False,
        "yaml-syntax",
        "the document has ended before this; only one list or mapping can stand at the top",
    ),
    ("tag handle", "", False, "yaml-tag", "this tag is not known; only plain values are allowed"),
    ("", "a tag", False, "yaml-tag", "this tag is not readable; only plain values are allowed"),
    (
        "anchor",
        "anchor",
        False,
        "yaml-alias",
        "an anchor (&) or alias (*) needs a name of letters and digits",
    ),
    (
        "alphabetic or numeric",
        "",
        False,
        "yaml-alias",
        "an anchor (&) or alias (*) needs a name of letters and digits",
    ),
    (
        "directive",
        "",
        False,
        "yaml-syntax",
        "a line that starts with % is a directive; quote it if it is text",
    ),
)


_BARE_NAME = re.compile(r"(\s*)[A-Za-z_][\w.-]*(?:\s+[^\s#:][^:]*)?\Z")
_GLUED = re.compile(r"\s*[A-Za-z_][\w.-]*:(?=[^\s:/\\])(?!.*:\s)")


@dataclass(frozen=True)
class Fault:
    """A syntax error, placed and in words. Lines and columns count from 1."""

    code: str
    message: str
    line: int
    col: int


def is_tab_problem(fault: Fault) -> bool:
    """Whether the fault is a tab where only spaces may stand."""
    return fault.code == "tab"


def explain(error: Any, content: str) -> Fault:
    """Say what a PyYAML syntax error means.

    Args:
        error: a `yaml.error.MarkedYAMLError`.
        content: the text that was read.
    """
    problem, context = str(error.problem or ""), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    line, col = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    lines = split_lines(content)
    row = lines[line - 1] if line <= len(lines) else ""
    at = row[col - 1 : col]
    if "tab" in problem or (at == "\t" or ("cannot start any token" in problem and "\t" in row[:col])):
        where = row.find("\t") + 1 or col
        return Fault("tab", "a tab is used for indentation; YAML takes spaces only", line, where)
    if "cannot start any token" in problem:
        return Fault("yaml-syntax", f"a value cannot start with {printable(at)}; quote it", line, col)
    code, words = "yaml-syntax", f"this is not YAML: {printable(problem)}"
    for part, in_context, use_context, known_code, known_words in _WORDS:
        if part in problem and in_context in context:
            code, words = known_code, known_words
            if use_context and error.context_mark is not None:
                line, col = error.context_mark.line + 1, error.context_mark.column + 1
            break
    line, col = _within(line, col, lines)
    colon = _glued_colon(line, lines, problem)
    if colon is not None:
        words = "a space is missing after this colon"
        line, col = colon
        return Fault(code, words, line, col)
    if "mapping values are not allowed" in problem:
        above = _bare_name(line, lines)
        if above is not None:
            words = "this is no entry: a colon and a space are missing after the name"
            line, col = above
    return Fault(code, words, line, col)


def _within(line: int, col: int, lines: list[str]) -> tuple[int, int]:
    """The place, moved from past the end of the text to its last character."""
    while line > 1 and (line > len(lines) or not lines[line - 1].strip()):
        line -= 1
        col = len(lines[line - 1].rstrip()) + 1
    return line, col


def _glued_colon(line: int, lines: list[str], problem: str) -> tuple[int, int] | None:
    """Where `name:value` stands without a space, if that is what a problem near `line` comes from."""
    if "mapping values are not allowed" not in problem and "expected ':'" not in problem:
        return None
    for row in (line, line - 1):
        text = lines[row - 1] if 1 <= row <= len(lines) else ""
        found = _GLUED.match(text)
        if found:
            return row, found.end()
    return None


def _bare_name(line: int, lines: list[str]) -> tuple[int, int] | None:
    """Where a name without a colon stands in the line above `line`, which it swallows, if one does."""
    row = line - 1
    while row > 0 and not lines[row - 1].partition("#")[0].strip():
        row -= 1
    found = _BARE_NAME.match(lines[row - 1]) if row > 0 else None
    return (row, len(found.group(1)) + 1) if found else None
