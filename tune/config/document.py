"""A configuration file as a document: the tree, what was wrong with it, and what could not be read.

A syntax error costs as little as possible: the value it stands in, failing that its line, failing that the whole
top-level entry. The rest of the file is read as if that were not there, so that its problems show in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tune.config.diagnostics import Diagnostic, Source
from tune.config.nodes import Listing, Mapped, Node, mapped
from tune.config.reading import Text
from tune.config.yaml_tree import Builder, Stop

if TYPE_CHECKING:
    from tune.config.repair import Repair

_MAX_REPAIRS = 40
_MAX_REPAIRED_CHARS = 4_000_000


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
    repair: Repair | None = None
    budget = _MAX_REPAIRED_CHARS
    for _ in range(_MAX_REPAIRS):
        shifts = repair.shifts if repair is not None else {}
        damaged = text.damaged or (repair is not None and repair.damaged)
        builder = Builder(text.name, shifts, damaged=damaged)
        try:
            root = builder.build(content)
        except Stop as stop:
            if repair is None:
                from tune.config.repair import Repair  # only for a file that needs it

                repair = Repair(document.problems, document.lost)
            repair.note(stop)
            budget -= len(content)
            repaired = repair.attempt(content, stop) if budget > 0 else None
            if repaired is None:
                # what was read before the end is still worth judging
                document.complete = False
                document.problems += builder.problems
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
