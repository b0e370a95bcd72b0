"""The tree a configuration is read into: lexemes and places, not yet values.

What a lexeme means depends on the type its place asks for, so nothing is turned into a number or a boolean here.
Nodes may be shared (YAML aliases), so they are never changed in place: edits copy the path down to what changes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
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
        weight: how many values it stands for, aliases written out; a long text counts as several.
        height: how deeply it nests.
    """

    source: Source
    shadows: Node | None = field(default=None, kw_only=True)
    written: str | None = field(default=None, kw_only=True)
    weight: int = field(default=1, init=False)
    height: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        parts = children(self)
        if parts or isinstance(self, Scalar):
            weight = len(self.text) // _CHARS_PER_WEIGHT if isinstance(self, Scalar) else 0
            object.__setattr__(self, "weight", 1 + weight + sum(part.weight for part in parts))
            object.__setattr__(self, "height", 1 + max((part.height for part in parts), default=0))


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


def with_entry(node: MappingNode, key: str, value: Node, key_source: Source) -> MappingNode:
    """A copy of `node` in which `key` is `value`."""
    return replace(node, entries={**node.entries, key: value}, keys={**node.keys, key: key_source})


def without_entry(node: MappingNode, key: str) -> MappingNode:
    """A copy of `node` without `key`."""
    return replace(node, entries={name: item for name, item in node.entries.items() if name != key})


def from_python(value: Any, source: Source = PYTHON) -> Node:
    """The node of a Python value: components, mappings and lists are taken apart, all else stays as it is."""
    if isinstance(value, Component):
        value = {COMPONENT_KEY: value.path, **(value.kwargs if value.path else {})}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return MappingNode(source, {key: from_python(item, source) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return SequenceNode(source, tuple(from_python(item, source) for item in value))
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


def children(node: Node) -> Collection[Node]:
    """The nodes directly inside `node`."""
    if isinstance(node, MappingNode):
        return node.entries.values()
    return node.items if isinstance(node, SequenceNode) else ()


def child(node: Node | None, part: str) -> Node | None:
    """The entry of a mapping, or the item of a list, that `part` of a dotted path names; None if there is none."""
    if isinstance(node, MappingNode):
        return node.entries.get(part)
    if isinstance(node, SequenceNode) and part.isdecimal() and len(part) <= 9 and int(part) < len(node.items):
        return node.items[int(part)]
    return None


def walk(node: Node) -> Iterator[Node]:
    """Every node below and including `node`."""
    yield node
    for inner in children(node):
        yield from walk(inner)


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
