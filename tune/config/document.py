"""A configuration file as a document: the tree, and what was wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tune.config.diagnostics import Diagnostic, Source
from tune.config.nodes import MappingNode, Node, SequenceNode, mapping_node
from tune.config.reading import Text
from tune.config.yaml_tree import Builder, Stop


@dataclass
class Document:
    """What a configuration file says.

    Args:
        root: the top-level mapping; empty where the file has none, or could not be read.
        problems: everything wrong with the file as YAML.
        complete: whether all of it was read; if not, nothing can be said about what is missing.
        readable: whether it is YAML at all; if not, `root` says nothing.
    """

    root: MappingNode
    problems: list[Diagnostic] = field(default_factory=list)
    complete: bool = True
    readable: bool = True


def read_document(text: Text) -> Document:
    """Read one configuration document.

    Args:
        text: from `tune.config.reading`; its own problems are handed on.
    """
    empty = mapping_node(Source("file", text.name, 1, 1), {}, {})
    unreadable = Document(empty, list(text.problems), complete=False, readable=False)
    if text.problems:
        return unreadable
    builder = Builder(text.name)
    try:
        root = builder.build(text.content)
    except Stop as stop:
        unreadable.problems = [*builder.problems, stop.problem]
        return unreadable
    if isinstance(root, MappingNode):
        return Document(root, builder.problems, complete=not builder.lost_key)
    unreadable.problems = builder.problems or [_no_mapping(root, text.name)]
    return unreadable


def _no_mapping(root: Node | None, name: str) -> Diagnostic:
    if root is None:
        place = Source("file", name, 1, 1)
        return Diagnostic("empty-config", "", f"{name} is empty: there are no parameters in it", place)
    what = "a list" if isinstance(root, SequenceNode) else "a single value"
    message = f"a configuration is a mapping of parameters (name: value), and this is {what}"
    return Diagnostic("not-a-mapping", "", message, root.source)
