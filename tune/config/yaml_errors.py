"""What a YAML reader's complaints mean in the words of someone who wrote a configuration."""

from __future__ import annotations

import re
from typing import Any

from tune.config.diagnostics import printable
from tune.config.reading import split_lines

_NO_ENTRY = "this is no entry: a colon and a space are missing after the name"
_NO_ITEM = "this does not continue the list above it: every item starts with '- ' at the same indentation"
_NO_NEIGHBOUR = "this does not continue the mapping above it: entries of a mapping share one indentation"
_BAD_TAG = "this tag is not readable; only plain values are allowed"
_BAD_ANCHOR = "an anchor (&) or alias (*) needs a name of letters and digits"

# (pattern of the reader's "context: problem", code, our words), the first that fits.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("quoted scalar: .*(end of stream|document indicator)", "unclosed", "this quote is never closed"),
    ("',' or ']'", "unclosed", "this list is not closed: a ] or a comma is missing"),
    ("',' or '}'", "unclosed", "this mapping is not closed: a } or a comma is missing"),
    ("flow sequence: .*expected the node", "unclosed", "this list is not closed: ] is missing"),
    ("flow mapping: .*expected the node", "unclosed", "this mapping is not closed: } is missing"),
    (
        "escape character",
        "yaml-syntax",
        "a backslash in double quotes starts an escape, and this is none; use single quotes",
    ),
    (
        "mapping values are not allowed",
        "yaml-syntax",
        "a ': ' is not allowed here; quote the value if it contains one, or mend the indentation",
    ),
    ("expected ':'", "yaml-syntax", _NO_ENTRY),
    (
        "block sequence entries are not allowed",
        "yaml-syntax",
        "a list item (- ...) is not allowed here; start the list on a line of its own",
    ),
    ("expected '-' indicator|block sequence: .*expected <block end>", "yaml-syntax", _NO_ITEM),
    ("expected key|expected <block end>", "yaml-syntax", _NO_NEIGHBOUR),
    (
        "expected <document start>",
        "yaml-syntax",
        "the document has ended before this; only one list or mapping can stand at the top",
    ),
    ("tag handle|a tag: ", "yaml-tag", _BAD_TAG),
    ("anchor.*: .*anchor|alphabetic or numeric", "yaml-alias", _BAD_ANCHOR),
    ("directive", "yaml-syntax", "a line that starts with % is a directive; quote it if it is text"),
)

_BARE_NAME = re.compile(r"(\s*)[A-Za-z_][\w.-]*(?:\s+[^\s#:][^:]*)?\Z")
_GLUED = re.compile(r"\s*[A-Za-z_][\w.-]*:(?=[^\s:/\\])(?!.*:\s)")


def explain(error: Any, content: str) -> tuple[str, str, int, int]:
    """Return the code, the meaning, the line and the column (from 1) of a syntax error.

    Args:
        error: a `yaml.error.MarkedYAMLError`.
        content: the text that was read.
    """
    problem, context = str(error.problem or ""), str(error.context or "")
    line, col = _place_of(error.problem_mark or error.context_mark)
    lines = split_lines(content)
    row = lines[line - 1] if line <= len(lines) else ""
    at = row[col - 1 : col]
    if "tab" in problem or (at == "\t" or ("cannot start any token" in problem and "\t" in row[:col])):
        return "tab", "a tab is used for indentation; YAML takes spaces only", line, row.find("\t") + 1 or col
    if "cannot start any token" in problem:
        return "yaml-syntax", f"a value cannot start with {printable(at)}; quote it", line, col
    code, words = "yaml-syntax", f"this is not YAML: {printable(problem)}"
    for pattern, known_code, known_words in _RULES:
        if re.search(pattern, f"{context}: {problem}"):
            code, words = known_code, known_words
            break
    if error.context_mark is not None and (code == "unclosed" or words is _NO_ENTRY):
        line, col = _place_of(error.context_mark)  # where it began says more than where the reader gave up
    while line > 1 and (line > len(lines) or not lines[line - 1].strip()):  # past the end
        line -= 1
        col = len(lines[line - 1].rstrip()) + 1
    if "mapping values are not allowed" in problem or "expected ':'" in problem:
        for number in (line, line - 1):
            glued = _GLUED.match(lines[number - 1]) if number >= 1 else None
            if glued:
                return code, "a space is missing after this colon", number, glued.end()
    if "mapping values are not allowed" in problem:
        number = line - 1  # a name without a colon swallows the line below it
        while number > 0 and not lines[number - 1].partition("#")[0].strip():
            number -= 1
        bare = _BARE_NAME.match(lines[number - 1]) if number > 0 else None
        if bare:
            return code, _NO_ENTRY, number, len(bare.group(1)) + 1
    return code, words, line, col


def _place_of(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
