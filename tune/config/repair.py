"""Reading on after a syntax error: the least that can be taken out of a text so that the rest can be read."""

from __future__ import annotations

import re

from tune.config.diagnostics import Diagnostic
from tune.config.reading import DAMAGE
from tune.config.yaml_tree import Stop

_TOP_KEY = re.compile(r"""(?P<key>[^\s#\-\[\]{}"'|>%@`&*!?:,][^#:]*|"[^"]*"|'[^']*'|[^\s:]+):(?:\s|$)""")
_ENTRY = re.compile(r"(?P<head>\s*(?:- +)*[A-Za-z_][\w.-]*:[ \t]+)(?P<value>\S.*)")
_INDENT = re.compile(r"[ ]*(?:- +)*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_INDENT_WITH_TAB = re.compile(r"[ ]*\t[ \t]*")
_ONCE = {"config-too-deep"}


class Repair:
    """Takes the causes of syntax errors out of a text, one after the other; line numbers stay as they are.

    Args:
        problems: what has been reported so far; what stops the reading is added.
        lost: gets the words of what is taken out.
    """

    def __init__(self, problems: list[Diagnostic], lost: set[str]) -> None:
        self._problems = problems
        self._lost = lost
        self._tried: set[tuple[int, str]] = set()
        self.shifts: dict[int, int] = {}
        self.damaged = False

    def note(self, stop: Stop) -> None:
        """Report what stopped the reading, unless it follows from what has been reported."""
        # One wrong thing, one error: what re-indented tabs or an emptied line lead to, or a second bomb, adds nothing.
        known = {problem.code for problem in self._problems}
        again = stop.line in self.shifts or any(line == stop.line for line, _ in self._tried)
        if not again and stop.problem.code not in known & _ONCE:
            self._problems.append(stop.problem)

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
        self._lost |= set(_WORD.findall(found.group("value")))
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
            self._lost |= set(_WORD.findall(lines[row]))
            lines[row] = re.sub(r"[^\r\n]", "", lines[row])


def _has_children(lines: list[str], row: int) -> bool:
    """Whether the next line with something in it is indented more than this one."""
    following = next((line for line in lines[row + 1 :] if line.strip()), "")
    return _indent_of(following) > _indent_of(lines[row])


def _indent_of(line: str) -> int:
    found = _INDENT.match(line)
    return found.end() if found else 0
