"""YAML to nodes: every value with its lexeme and place, in bounded time and memory.

PyYAML's events (by libyaml where it is compiled in) are turned into a tree without constructing anything. A syntax
error ends the reading; what only the tree can show (a key set twice, a tag) does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tune.config.diagnostics import Diagnostic, Source, quote
from tune.config.nodes import (
    MAX_DEPTH,
    MAX_WEIGHT,
    ErrorNode,
    MappingNode,
    Node,
    Scalar,
    SequenceNode,
    core_value,
)
from tune.config.reading import Text

_CORE_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_CORE_TAG + name for name in ("int", "float", "bool", "null")}
_MAX_PROBLEMS = 200


class _Stop(Exception):
    """Reading cannot go on past this point."""

    def __init__(self, problem: Diagnostic) -> None:
        super().__init__(problem.message)
        self.problem = problem


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
    empty = MappingNode(Source("file", text.name, 1, 1))
    unreadable = Document(empty, list(text.problems), complete=False, readable=False)
    if text.problems:
        return unreadable
    builder = _Builder(text.name)
    try:
        root = builder.build(text.content)
    except _Stop as stop:
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


def read_flow(text: str, source: Source) -> tuple[Node | None, Diagnostic | None]:
    """Read a value given on the command line in YAML's flow style.

    Args:
        text: the value, from its first bracket or quote on.
        source: the argument; its column is that of the value's first character.
    """
    builder = _Builder("", flow_in=source)
    try:
        node = builder.build(text)
    except _Stop as stop:
        problem = stop.problem
        if "document has ended" in problem.message:
            problem = replace(problem, message="there is text after the end of the value")
        return None, problem
    if builder.problems:
        return None, builder.problems[0]
    return node, None


@functools.cache
def _event_reader() -> tuple[Callable[[str], Iterator[Any]], type[Exception]]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return lambda text: yaml.parse(text, Loader=loader), yaml.error.MarkedYAMLError


class _Builder:
    """Builds the tree from events, one call for each list or mapping, at most `MAX_DEPTH` within one another."""

    def __init__(self, name: str, flow_in: Source | None = None) -> None:
        self.name = name
        self.problems: list[Diagnostic] = []
        self.lost_key = False  # whether a key could not be read
        self._flow_in = flow_in
        self._events: Iterator[Any] = iter(())
        self._anchors: dict[str, Node | None] = {}  # None while what it names is being read
        self._path: list[str] = []  # keys and indices that lead to where the reading is
        self._depth = 0
        self._weight = 0

    def build(self, content: str) -> Node | None:
        parse, syntax_error = _event_reader()
        root: Node | None = None
        documents = 0
        try:
            self._events = parse(content)
            for event in self._events:
                kind = type(event).__name__
                if kind == "DocumentStartEvent":
                    documents += 1
                    if documents == 2:
                        message = "a second document starts here; a configuration is one document"
                        self._report("many-documents", message, self._place(event))
                        break
                elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                    root = self._node(event)
        except syntax_error as error:
            from tune.config.yaml_errors import explain  # only on the way to an error

            code, message, line, col = explain(error, content)
            raise _Stop(Diagnostic(code, "", message, self._at(line, col))) from None
        except (RecursionError, ValueError, OverflowError) as error:
            # the pure Python reader meets its own limits before ours
            place = Source("file", self.name, 1, 1) if self._flow_in is None else self._flow_in
            raise _Stop(Diagnostic("yaml-syntax", "", f"this is not readable YAML: {error}", place)) from None
        return root

    def _node(self, event: Any) -> Node:
        kind = type(event).__name__
        if kind == "AliasEvent":
            return self._alias(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if kind == "ScalarEvent":
            node = self._scalar(event)
            self._count(node.weight, event)
        else:
            if self._depth >= MAX_DEPTH:
                self._too_deep(event)
            self._count(1, event)
            is_map = kind == "MappingStartEvent"
            is_plain = event.tag in (None, "!", _CORE_TAG + ("map" if is_map else "seq"))
            refused = None if is_plain else self._refuse_tag(event.tag, self._place(event))
            self._depth += 1
            node = self._mapping(event) if is_map else self._sequence(event)
            self._depth -= 1
            node = refused or node
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _scalar(self, event: Any) -> Node:
        style = "quoted" if event.style else "plain"
        source = self._place(event)
        tag = event.tag
        if tag == _CORE_TAG + "str" or tag == "!":
            style = "quoted"
        elif tag in _PLAIN_TAGS:
            style = "plain"
        elif tag is not None:
            return self._refuse_tag(tag, source)
        return Scalar(source, event.value, style)

    def _refuse_tag(self, tag: str, source: Source) -> ErrorNode:
        shown = tag.replace(_CORE_TAG, "!!") if tag.startswith(_CORE_TAG) else tag
        message = f"the tag {quote(shown)} would construct an object; only plain values are allowed"
        return self._report("yaml-tag", message, source)

    def _alias(self, event: Any) -> Node:
        source = self._place(event)
        name = event.anchor
        if name not in self._anchors:
            message = f"*{name} refers to an anchor that is not there: no &{name} before it"
            return self._report("yaml-alias", message, source)
        node = self._anchors[name]
        if node is None:
            return self._report("yaml-alias", f"*{name} stands inside what it names, &{name}", source)
        self._count(node.weight, event)
        if self._depth + node.height > MAX_DEPTH:
            self._too_deep(event)
        return node

    def _sequence(self, start: Any) -> Node:
        items: list[Node] = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            self._path.append(str(len(items)))
            items.append(self._node(event))
            self._path.pop()
        return SequenceNode(self._place(start), tuple(items))

    def _mapping(self, start: Any) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Source] = {}
        merges: list[Node] = []
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key_node = self._node(event)
            key = self._key(key_node)
            self._path.append(key or "?")
            value = self._node(next(self._events))
            # a quoted "<<" is a key like any other
            if isinstance(key_node, Scalar) and key_node.style == "plain" and key_node.text == "<<":
                merges.append(value)
            elif key in entries:
                first = keys[key].line
                before = f"first in line {first}, and again" if first else "first before it, and again"
                message = f"{quote(key)} is set twice here: {before}; remove one of them"
                self._report("duplicate-key", message, key_node.source)
            elif key is not None:
                entries[key], keys[key] = value, key_node.source
            self._path.pop()
        for merged in merges:
            self._merge(entries, keys, merged)
        return MappingNode(self._place(start), entries, keys)

    def _key(self, node: Node) -> str | None:
        """The text of a key, or None if the entry is to be dropped."""
        if isinstance(node, ErrorNode):
            self.lost_key = True
            return None
        if not isinstance(node, Scalar):
            self._report("bad-key", "a key must be text, and this is a list or mapping", node.source)
            return None
        value = core_value(node.text) if node.style == "plain" else node.text
        if not isinstance(value, str):
            shown = node.text or "(nothing)"
            what = "null" if value is None else type(value).__name__
            message = (
                f"a key must be text, and {quote(shown)} is {what} in YAML; quote it if it is meant as text"
            )
            self._report("bad-key", message, node.source, f'"{node.text}"')
            return None
        return node.text

    def _merge(self, entries: dict[str, Node], keys: dict[str, Source], node: Node) -> None:
        """YAML's merge key: entries of another mapping that are not set here."""
        if isinstance(node, SequenceNode):
            for item in node.items:
                self._merge(entries, keys, item)
        elif isinstance(node, MappingNode):
            for key, value in node.entries.items():
                if key not in entries:
                    entries[key], keys[key] = value, node.key_source(key)
        elif isinstance(node, ErrorNode):
            self.lost_key = True
        else:
            message = "the merge key << takes a mapping, or a list of mappings"
            self._report("yaml-merge", message, node.source)

    def _count(self, weight: int, event: Any) -> None:
        self._weight += weight
        if self._weight > MAX_WEIGHT:
            message = f"with its aliases written out this configuration holds more than {MAX_WEIGHT:,} values"
            raise _Stop(Diagnostic("config-too-large", "", message, self._place(event)))

    def _too_deep(self, event: Any) -> None:
        message = f"lists and mappings nest more than {MAX_DEPTH} deep here"
        raise _Stop(Diagnostic("config-too-deep", "", message, self._place(event)))

    def _place(self, event: Any) -> Source:
        start, end = event.start_mark, event.end_mark
        length = end.column - start.column if end.line == start.line else 1
        return self._at(start.line + 1, start.column + 1, max(1, length))

    def _at(self, line: int, col: int, length: int = 1) -> Source:
        if self._flow_in is not None:
            shift = (self._flow_in.col or 1) - 1
            return replace(self._flow_in, col=col + shift if line == 1 else self._flow_in.col, length=length)
        return Source("file", self.name, line, col, length=length)

    def _report(self, code: str, message: str, source: Source, suggestion: str | None = None) -> ErrorNode:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Diagnostic(code, ".".join(self._path), message, source, suggestion))
        return ErrorNode(source)
