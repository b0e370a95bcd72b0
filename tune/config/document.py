"""A configuration file as a document: the tree, what was wrong with it, and what could not be read.

A syntax error costs the top-level entry it stands in; the rest of the file is read as if that entry were not there,
so that its problems show in the same pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tune.config.diagnostics import Diagnostic, Source
from tune.config.nodes import Listing, Mapped, Node, mapped
from tune.config.reading import Text
from tune.config.yaml_tree import Builder, Stop

_MAX_REPAIRS = 20
_MAX_REPAIRED_CHARS = 4_000_000
_TOP_KEY = re.compile(r"""(?P<key>[^\s#\-\[\]{}"'|>%@`&*!?:,][^#:]*|"[^"]*"|'[^']*'|[^\s:]+):(?:\s|$)""")
_INDENT_WITH_TAB = re.compile(r"[ ]*\t[ \t]*")
_ONCE = {"config-too-deep"}


@dataclass
class Document:
    """What a configuration file says.

    Args:
        root: the top-level mapping; empty where the file has none.
        problems: everything wrong with the file as YAML.
        lost: top-level keys whose entries could not be read.
        complete: whether the whole text was read; if not, nothing can be said about what is missing.
    """

    root: Mapped
    problems: list[Diagnostic] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    complete: bool = True


def read_document(text: Text) -> Document:
    """Read one configuration document.

    Args:
        text: from `tune.config.reading`; its own problems are handed on.
    """
    empty = mapped(Source("file", text.name, 1, 1), {}, {})
    document = Document(empty, list(text.problems), complete=not text.problems)
    if not text.readable:
        return document
    content = text.content
    shifts: dict[int, int] = {}
    budget = _MAX_REPAIRED_CHARS
    for _ in range(_MAX_REPAIRS):
        builder = Builder(text.name, shifts, damaged=text.damaged)
        try:
            root = builder.build(content)
        except Stop as stop:
            document.complete = False
            # One wrong thing, one error: what re-indented tabs lead to, or a second bomb, adds nothing.
            if (
                stop.line not in shifts
                and stop.problem.code not in {p.code for p in document.problems} & _ONCE
            ):
                document.problems.append(stop.problem)
            budget -= len(content)
            repaired = _repair(content, stop, document, shifts) if budget > 0 else None
            if repaired is None:
                # what was read before the end is still worth judging
                document.problems += builder.problems
                if stop.problem.code != "config-too-large":
                    document.root = builder.partial_root() or empty
                return document
            content = repaired
            continue
        document.problems += builder.problems
        if isinstance(root, Mapped):
            document.root = root
        else:
            document.complete = False
            if not document.lost and (not document.problems or document.problems == text.problems):
                document.problems.append(_no_mapping(root, text.name))
        return document
    return document


def _no_mapping(root: Node | None, name: str) -> Diagnostic:
    if root is None:
        place = Source("file", name, 1, 1)
        return Diagnostic("empty-config", "", f"{name} is empty: there are no parameters in it", place)
    what = "a list" if isinstance(root, Listing) else "a single value"
    message = f"a configuration is a mapping of parameters (name: value), and this is {what}"
    return Diagnostic("not-a-mapping", "", message, root.source)


def _repair(content: str, stop: Stop, document: Document, shifts: dict[int, int]) -> str | None:
    """The text with the cause of `stop` taken out, line numbers unchanged; None where that cannot be done."""
    if stop.problem.code == "config-too-large":
        return None
    lines = content.splitlines(keepends=True)
    if stop.problem.code == "tab" and not shifts:
        for row, line in enumerate(lines):
            indent = _INDENT_WITH_TAB.match(line)
            if indent:
                shifts[row + 1] = indent.group().count("\t")
                lines[row] = indent.group().replace("\t", "  ") + line[indent.end() :]
        if shifts:
            return "".join(lines)
    culprit = stop.line - 1
    if culprit >= len(lines):
        return None
    starts = [row for row, line in enumerate(lines) if _TOP_KEY.match(line)]
    first = max((row for row in starts if row <= culprit), default=None)
    # A line at the left edge that is no entry is itself the culprit, and the entry before it is fine.
    if culprit not in starts and lines[culprit][:1].strip():
        first = culprit
    if first is None:
        return None
    last = min((row for row in starts if row > first), default=len(lines))
    rest = [row for row in starts if not first <= row < last]
    found = _TOP_KEY.match(lines[first])
    if found:
        document.lost.add(found.group("key").strip().strip("\"'"))
    if not rest or not any(line.strip() for line in lines[first:last]):
        return None
    blank = [re.sub(r"[^\r\n]", "", line) for line in lines[first:last]]
    return "".join(lines[:first] + blank + lines[last:])
