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
    mapping_node,
    sequence_node,
    text_weight,
)

_CORE_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_CORE_TAG + name for name in ("int", "float", "bool", "null")}
_MAX_PROBLEMS = 200


class Stop(Exception):
    """Reading cannot go on past this point."""

    def __init__(self, problem: Diagnostic) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass
class _Frame:
    """A list or mapping under construction."""

    source: Source
    is_map: bool
    anchor: str | None
    broken: bool = False
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Source] = field(default_factory=dict)
    merges: list[Node] = field(default_factory=list)
    key: str | None = None
    key_source: Source | None = None
    wants_value: bool = False
    is_merge: bool = False
    weight: int = 1
    height: int = 1


def read_flow(text: str, source: Source) -> tuple[Node | None, Diagnostic | None]:
    """Read a value given on the command line in YAML's flow style.

    Args:
        text: the value, from its first bracket or quote on.
        source: the argument; its column is that of the value's first character.
    """
    builder = Builder("", flow_in=source)
    try:
        node = builder.build(text)
    except Stop as stop:
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


class Builder:
    """Builds the tree from events, with a stack of its own: depth costs no recursion."""

    def __init__(self, name: str, flow_in: Source | None = None) -> None:
        self.name = name
        self.problems: list[Diagnostic] = []
        self.lost_key = False  # whether a key could not be read
        self._flow_in = flow_in
        self._anchors: dict[str, Node] = {}
        self._open_anchors: set[str] = set()
        self._stack: list[_Frame] = []
        self._root: Node | None = None
        self._weight = 0

    def build(self, content: str) -> Node | None:
        parse, syntax_error = _event_reader()
        documents = 0
        try:
            for event in parse(content):
                kind = type(event).__name__
                if kind == "DocumentStartEvent":
                    documents += 1
                    if documents == 2:
                        message = "a second document starts here; a configuration is one document"
                        self._report("many-documents", message, self._place(event))
                        break
                else:
                    self._take(kind, event)
        except syntax_error as error:
            raise self._stop_at(error, content) from None
        except (RecursionError, ValueError, OverflowError) as error:
            # the pure Python reader meets its own limits before ours
            place = Source("file", self.name, 1, 1) if self._flow_in is None else self._flow_in
            raise Stop(Diagnostic("yaml-syntax", "", f"this is not readable YAML: {error}", place)) from None
        return self._root

    def _take(self, kind: str, event: Any) -> None:
        if kind == "ScalarEvent":
            self._count(text_weight(event.value), event)
            self._attach(self._register(event, self._scalar(event)))
        elif kind == "AliasEvent":
            self._attach(self._alias(event))
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._open(event, is_map=kind == "MappingStartEvent")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._close()

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
        return Scalar(source, event.value, style, weight=text_weight(event.value))

    def _refuse_tag(self, tag: str, source: Source) -> ErrorNode:
        shown = tag.replace(_CORE_TAG, "!!") if tag.startswith(_CORE_TAG) else tag
        message = f"the tag {quote(shown)} would construct an object; only plain values are allowed"
        self._report("yaml-tag", message, source)
        return ErrorNode(source)

    def _alias(self, event: Any) -> Node:
        source = self._place(event)
        name = event.anchor
        if name in self._open_anchors:
            self._report("yaml-alias", f"*{name} stands inside what it names, &{name}", source)
            return ErrorNode(source)
        node = self._anchors.get(name)
        if node is None:
            self._report(
                "yaml-alias", f"*{name} refers to an anchor that is not there: no &{name} before it", source
            )
            return ErrorNode(source)
        self._count(node.weight, event)
        if len(self._stack) + node.height > MAX_DEPTH:
            self._too_deep(event)
        return node

    def _open(self, event: Any, *, is_map: bool) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self._too_deep(event)
        self._count(1, event)
        frame = _Frame(self._place(event), is_map, event.anchor)
        if event.tag not in (None, "!", _CORE_TAG + ("map" if is_map else "seq")):
            self._refuse_tag(event.tag, frame.source)
            frame.broken = True
        if event.anchor is not None:
            self._open_anchors.add(event.anchor)
        self._stack.append(frame)

    def _close(self) -> None:
        frame = self._stack.pop()
        if frame.is_map:
            for merged in frame.merges:
                self._merge(frame, merged)
            node: Node = mapping_node(frame.source, frame.entries, frame.keys)
        else:
            node = sequence_node(frame.source, frame.items)
        if frame.broken:
            node = ErrorNode(frame.source)
        if frame.anchor is not None:
            self._open_anchors.discard(frame.anchor)
            self._anchors[frame.anchor] = node
        self._attach(node)

    def _attach(self, node: Node) -> None:
        if not self._stack:
            self._root = node
            return
        frame = self._stack[-1]
        if not frame.is_map:
            frame.items.append(node)
        elif frame.wants_value:
            frame.wants_value = False
            self._add_entry(frame, node)
        else:
            frame.key, frame.key_source = self._key(node, frame), node.source
            # a quoted "<<" is a key like any other
            frame.is_merge = isinstance(node, Scalar) and node.style == "plain" and node.text == "<<"
            frame.wants_value = True

    def _key(self, node: Node, frame: _Frame) -> str | None:
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
            self._report("bad-key", message, node.source, suggestion=f'"{node.text}"')
            return None
        return node.text

    def _add_entry(self, frame: _Frame, node: Node) -> None:
        key, source = frame.key, frame.key_source
        if key is None or source is None:
            return
        if frame.is_merge:
            frame.merges.append(node)
            return
        if key in frame.entries:
            first = frame.keys[key].line
            before = f"first in line {first}, and again" if first else "first before it, and again"
            message = f"{quote(key)} is set twice here: {before}; remove one of them"
            self._report("duplicate-key", message, source, path=self._path_to(key))
            return
        frame.entries[key] = node
        frame.keys[key] = source

    def _merge(self, frame: _Frame, node: Node) -> None:
        """YAML's merge key: entries of another mapping that are not set here."""
        if isinstance(node, SequenceNode):
            for item in node.items:
                self._merge(frame, item)
        elif isinstance(node, MappingNode):
            for key, value in node.entries.items():
                if key not in frame.entries:
                    frame.entries[key] = value
                    frame.keys[key] = node.key_source(key)
        elif isinstance(node, ErrorNode):
            self.lost_key = True
        else:
            message = "the merge key << takes a mapping, or a list of mappings"
            self._report("yaml-merge", message, node.source)

    def _register(self, event: Any, node: Node) -> Node:
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _path_to(self, key: str) -> str:
        parts = [frame.key or "?" if frame.is_map else str(len(frame.items)) for frame in self._stack[:-1]]
        return ".".join([*parts, key])

    def _count(self, weight: int, event: Any) -> None:
        self._weight += weight
        if self._weight > MAX_WEIGHT:
            message = f"with its aliases written out this configuration holds more than {MAX_WEIGHT:,} values"
            raise Stop(Diagnostic("config-too-large", "", message, self._place(event)))

    def _too_deep(self, event: Any) -> None:
        message = f"lists and mappings nest more than {MAX_DEPTH} deep here"
        raise Stop(Diagnostic("config-too-deep", "", message, self._place(event)))

    def _place(self, event: Any) -> Source:
        start, end = event.start_mark, event.end_mark
        length = end.column - start.column if end.line == start.line else 1
        return self._at(start.line + 1, start.column + 1, max(1, length))

    def _at(self, line: int, col: int, length: int = 1) -> Source:
        if self._flow_in is not None:
            shift = (self._flow_in.col or 1) - 1
            return replace(self._flow_in, col=col + shift if line == 1 else self._flow_in.col, length=length)
        return Source("file", self.name, line, col, length=length)

    def _report(
        self, code: str, message: str, source: Source, *, path: str = "", suggestion: str | None = None
    ) -> None:
        if not path:
            keys = [frame.key for frame in self._stack if frame.is_map and frame.wants_value and frame.key]
            path = ".".join(keys)
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Diagnostic(code, path, message, source, suggestion))

    def _stop_at(self, error: Any, content: str) -> Stop:
        from tune.config.yaml_errors import explain  # only on the way to an error

        code, message, line, col = explain(error, content)
        return Stop(Diagnostic(code, "", message, self._at(line, col)))
