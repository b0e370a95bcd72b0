"""A configuration file as a document: the tree, what was wrong with it, and what could not be read.

A syntax error costs as little as possible: the value it stands in, failing that its line, failing that the whole
top-level entry. The rest of the file is read as if that were not there, so that its problems show in the same pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tune.config.diagnostics import Diagnostic, Source
from tune.config.nodes import Listing, Mapped, Node, mapped
from tune.config.reading import DAMAGE, Text
from tune.config.yaml_tree import Builder, Stop

_MAX_REPAIRS = 40
_MAX_REPAIRED_CHARS = 4_000_000
_TOP_KEY = re.compile(r"""(?P<key>[^\s#\-\[\]{}"'|>%@`&*!?:,][^#:]*|"[^"]*"|'[^']*'|[^\s:]+):(?:\s|$)""")
_ENTRY = re.compile(r"(?P<head>\s*(?:- +)*[A-Za-z_][\w.-]*:[ \t]+)(?P<value>\S.*)")
_INDENT = re.compile(r"[ ]*(?:- +)*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_INDENT_WITH_TAB = re.compile(r"[ ]*\t[ \t]*")
_ONCE = {"config-too-deep"}


@dataclass
class Document:
    """What a configuration file says.

    Args:
        root: the top-level mapping; empty where the file has none.
        problems: everything wrong with the file as YAML.
        lost: the words of what was passed over: nothing among them can be called missing.
        complete: whether all else was read; if not, nothing at all can be said about what is missing.
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
    document = Document(empty, list(text.problems), complete=text.readable)
    if not text.readable:
        return document
    content = text.content
    repair = _Repair(document)
    budget = _MAX_REPAIRED_CHARS
    for _ in range(_MAX_REPAIRS):
        builder = Builder(text.name, repair.shifts, damaged=text.damaged or repair.damaged)
        try:
            root = builder.build(content)
        except Stop as stop:
            repair.note(stop)
            budget -= len(content)
            repaired = repair.attempt(content, stop) if budget > 0 else None
            if repaired is None:
                # what was read before the end is still worth judging
                document.complete = False
                document.problems += builder.problems
                if stop.problem.code != "config-too-large":
                    document.root = builder.partial_root() or empty
                return document
            content = repaired
            continue
        document.problems += builder.problems
        document.complete = document.complete and not builder.lost_key
        if isinstance(root, Mapped):
            document.root = root
        else:
            document.complete = False
            if not document.lost and (not document.problems or document.problems == text.problems):
                document.problems.append(_no_mapping(root, text.name))
        return document
    document.complete = False
    return document


def _no_mapping(root: Node | None, name: str) -> Diagnostic:
    if root is None:
        place = Source("file", name, 1, 1)
        return Diagnostic("empty-config", "", f"{name} is empty: there are no parameters in it", place)
    what = "a list" if isinstance(root, Listing) else "a single value"
    message = f"a configuration is a mapping of parameters (name: value), and this is {what}"
    return Diagnostic("not-a-mapping", "", message, root.source)


class _Repair:
    """Takes the causes of syntax errors out of a text, one after the other; line numbers stay as they are."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._tried: set[tuple[int, str]] = set()
        self.shifts: dict[int, int] = {}
        self.damaged = False

    def note(self, stop: Stop) -> None:
        """Report what stopped the reading, unless it follows from what has been reported."""
        # One wrong thing, one error: what re-indented tabs or an emptied line lead to, or a second bomb, adds nothing.
        known = {problem.code for problem in self._document.problems}
        again = stop.line in self.shifts or any(line == stop.line for line, _ in self._tried)
        if not again and stop.problem.code not in known & _ONCE:
            self._document.problems.append(stop.problem)

    def attempt(self, content: str, stop: Stop) -> str | None:
        """The text with the cause of `stop` taken out; None where that cannot be done."""
        if stop.problem.code == "config-too-large":
            return None
        lines = content.splitlines(keepends=True)
        if stop.problem.code == "tab" and not self.shifts:
            self._indent(lines)
            if self.shifts:
                return "".join(lines)
        row = stop.line - 1
        if row >= len(lines):
            return None
        if self._take_value(lines, row) or self._take_line(lines, row) or self._take_entry(lines, row):
            return "".join(lines)
        return None

    def _indent(self, lines: list[str]) -> None:
        for row, line in enumerate(lines):
            indent = _INDENT_WITH_TAB.match(line)
            if indent:
                self.shifts[row + 1] = indent.group().count("\t")
                lines[row] = indent.group().replace("\t", "  ") + line[indent.end() :]

    def _may_try(self, row: int, how: str) -> bool:
        if (row + 1, how) in self._tried:
            return False
        self._tried.add((row + 1, how))
        return True

    def _take_value(self, lines: list[str], row: int) -> bool:
        """Mark the value in this line as unreadable, if it is one that ends there."""
        found = _ENTRY.match(lines[row])
        if found is None or _has_children(lines, row) or not self._may_try(row, "value"):
            return False
        self.damaged = True
        self._document.lost |= set(_WORD.findall(found.group("value")))
        ending = lines[row][len(lines[row].rstrip("\r\n")) :]
        lines[row] = f"{found.group('head')}{DAMAGE}{ending}"
        return True

    def _take_line(self, lines: list[str], row: int) -> bool:
        """Empty this line, if it stands alone: what hangs below it would end up elsewhere."""
        if not lines[row].strip() or _has_children(lines, row) or not self._may_try(row, "line"):
            return False
        self._blank(lines, row, row + 1)
        return True

    def _take_entry(self, lines: list[str], row: int) -> bool:
        """Empty the top-level entry that this line belongs to."""
        starts = [index for index, line in enumerate(lines) if _TOP_KEY.match(line)]
        first = max((index for index in starts if index <= row), default=None)
        # A line at the left edge that is no entry is itself the culprit, and the entry before it is fine.
        if row not in starts and lines[row][:1].strip():
            first = row
        if first is None:
            return False
        last = min((index for index in starts if index > first), default=len(lines))
        if not any(line.strip() for line in lines[first:last]):
            return False
        self._blank(lines, first, last)
        return any(line.strip() for line in lines)

    def _blank(self, lines: list[str], first: int, last: int) -> None:
        for row in range(first, last):
            self._document.lost |= set(_WORD.findall(lines[row]))
            lines[row] = re.sub(r"[^\r\n]", "", lines[row])


def _has_children(lines: list[str], row: int) -> bool:
    """Whether the next line with something in it is indented more than this one."""
    following = next((line for line in lines[row + 1 :] if line.strip()), "")
    return _indent_of(following) > _indent_of(lines[row])


def _indent_of(line: str) -> int:
    found = _INDENT.match(line)
    return found.end() if found else 0
