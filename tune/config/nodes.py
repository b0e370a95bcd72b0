"""The tree a configuration is read into: lexemes and places, not yet values.

What a lexeme means depends on the type its place asks for, so nothing is turned into a number or a boolean here.
Nodes may be shared (YAML aliases), so they are never changed in place: edits copy the path down to what changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.diagnostics import DEFAULT, PYTHON, Diagnostic, Source

MAX_DEPTH = 64
MAX_WEIGHT = 50_000  # values a configuration may stand for once aliases and references are written out
MAX_GUESSES = 50  # how often one configuration gets guessed at: guessing takes a millisecond
_CHARS_PER_WEIGHT = 100

NULL_WORDS = frozenset({"null", "Null", "NULL"})
_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YAML_1_1_BOOL = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED_INT = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_INF = re.compile(r"([-+]?)\.(?:inf|Inf|INF)\Z")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)\Z")
_MAX_DIGITS = 400


@dataclass(frozen=True, eq=False)
class Node:
    """A value as written, with its place.

    Args:
        source: where it stands.
        shadows: the node it overrides, if any.
        written: the path the user wrote, where it differs from the place in the tree (short forms).
        weight: how many values it stands for, aliases written out.
        height: how deeply it nests.
    """

    source: Source
    shadows: Node | None = field(default=None, kw_only=True)
    written: str | None = field(default=None, kw_only=True)
    weight: int = field(default=1, kw_only=True)
    height: int = field(default=1, kw_only=True)


@dataclass(frozen=True, eq=False)
class Scalar(Node):
    """A single value.

    Args:
        text: the lexeme, quotes removed.
        style: "plain", "quoted" (always text), or "verbatim" (from the command line, typed by its target).
    """

    text: str
    style: str = "plain"


@dataclass(frozen=True, eq=False)
class PythonValue(Node):
    """A value that already has a type: a default, or an argument given in Python."""

    value: Any


@dataclass(frozen=True, eq=False)
class SequenceNode(Node):
    """A list."""

    items: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class MappingNode(Node):
    """A mapping; keys are text. `keys` has the place of each key."""

    entries: Mapping[str, Node] = field(default_factory=dict)
    keys: Mapping[str, Source] = field(default_factory=dict)

    def key_source(self, key: str) -> Source:
        """Where `key` stands."""
        return self.keys.get(key, self.source)


@dataclass(frozen=True, eq=False)
class ErrorNode(Node):
    """A value that has been reported already, and is passed over in silence."""


def text_weight(text: str) -> int:
    """How much a text counts towards `MAX_WEIGHT`."""
    return 1 + len(text) // _CHARS_PER_WEIGHT


def sequence_node(source: Source, items: Sequence[Node]) -> SequenceNode:
    """A list node, weighed."""
    return SequenceNode(
        source,
        tuple(items),
        weight=1 + sum(item.weight for item in items),
        height=1 + max((item.height for item in items), default=0),
    )


def mapping_node(source: Source, entries: Mapping[str, Node], keys: Mapping[str, Source]) -> MappingNode:
    """A mapping node, weighed."""
    return MappingNode(
        source,
        entries,
        keys,
        weight=1 + sum(item.weight for item in entries.values()),
        height=1 + max((item.height for item in entries.values()), default=0),
    )


def with_entry(node: MappingNode, key: str, value: Node, key_source: Source) -> MappingNode:
    """A copy of `node` in which `key` is `value`."""
    made = mapping_node(node.source, {**node.entries, key: value}, {**node.keys, key: key_source})
    return replace(made, shadows=node.shadows, written=node.written)


def with_items(node: SequenceNode, items: Sequence[Node]) -> SequenceNode:
    """A copy of `node` that holds `items`."""
    return replace(sequence_node(node.source, items), shadows=node.shadows, written=node.written)


def without_entry(node: MappingNode, key: str) -> MappingNode:
    """A copy of `node` without `key`."""
    entries = {name: item for name, item in node.entries.items() if name != key}
    keys = {name: place for name, place in node.keys.items() if name != key}
    return replace(mapping_node(node.source, entries, keys), shadows=node.shadows, written=node.written)


def from_python(value: Any, source: Source = PYTHON) -> Node:
    """The node of a Python value: components, mappings and lists are taken apart, all else stays as it is."""
    if isinstance(value, Component):
        inner = value.kwargs if value.path else {}
        path = {COMPONENT_KEY: PythonValue(source, value.path)}
        return mapping_node(
            source, {**path, **{key: from_python(item, source) for key, item in inner.items()}}, {}
        )
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return mapping_node(source, {key: from_python(item, source) for key, item in value.items()}, {})
    if isinstance(value, (list, tuple)):
        return sequence_node(source, [from_python(item, source) for item in value])
    return PythonValue(source, value)


def default_node(value: Any) -> Node:
    """The node of a declared default."""
    return from_python(value, DEFAULT)


def is_null(node: Node) -> bool:
    """Whether the node says null."""
    if isinstance(node, PythonValue):
        return node.value is None
    if not isinstance(node, Scalar) or node.style == "quoted":
        return False
    # on the command line only the word: `key=` and `key=~` are a text's own values
    return node.text in NULL_WORDS or (node.style == "plain" and _NULL.match(node.text) is not None)


def walk(node: Node) -> Iterator[Node]:
    """Every node below and including `node`."""
    yield node
    inner = node.items if isinstance(node, SequenceNode) else ()
    for item in node.entries.values() if isinstance(node, MappingNode) else inner:
        yield from walk(item)


def parse_int(text: str) -> int | None:
    """The integer that `text` is by YAML 1.2, or None."""
    if len(text) > _MAX_DIGITS:
        return None
    if _INT.match(text):
        return int(text)
    return int(text, 0) if _BASED_INT.match(text) else None


def parse_float(text: str) -> float | None:
    """The float that `text` is by YAML 1.2 (`.inf` and `.nan` included), or None."""
    if len(text) > _MAX_DIGITS:
        return None
    if _FLOAT.match(text):
        return float(text)
    found = _INF.match(text)
    if found:
        return float(f"{found.group(1)}inf")
    return float("nan") if _NAN.match(text) else None


def core_value(text: str) -> Any:
    """The value a plain scalar has by YAML 1.2's core rules: null, bool, int, float, else text."""
    if _NULL.match(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    number = parse_int(text)
    if number is not None:
        return number
    value = parse_float(text)
    return text if value is None else value


def yaml_1_1_bool(node: Node, path: str) -> Diagnostic | None:
    """A warning about a word that older YAML reads as true or false, and that is text here; None for all else."""
    if not isinstance(node, Scalar) or node.style == "quoted":
        return None
    meant = _YAML_1_1_BOOL.get(node.text.lower())
    if meant is None:
        return None
    message = (
        f"{path} is the text {node.text!r}: in YAML 1.2 that is no boolean; write {meant}, or quote the text"
    )
    return Diagnostic("yes-is-text", path, message, node.source, meant, severity="warning")


def plain_value(node: Node) -> Any:
    """The Python value of a node whose target type is not known."""
    if isinstance(node, PythonValue):
        return node.value
    if isinstance(node, Scalar):
        return node.text if node.style == "quoted" else core_value(node.text)
    if isinstance(node, SequenceNode):
        return [plain_value(item) for item in node.items]
    if isinstance(node, MappingNode):
        return {key: plain_value(item) for key, item in node.entries.items()}
    return None
