"""References: `${a.b}` stands for another value of the configuration, `\\${` for the characters themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from tune.config.diagnostics import Diagnostic, quote
from tune.config.environment import VARIABLE_PREFIX, is_set, read_variable
from tune.config.fields import ParamInfo, other_spelling
from tune.config.merging import name_component
from tune.config.nodes import (
    MAX_DEPTH,
    MAX_GUESSES,
    MAX_WEIGHT,
    ErrorNode,
    MappingNode,
    Node,
    PythonValue,
    Scalar,
    SequenceNode,
    child,
    default_node,
    is_null,
    walk,
)
from tune.config.suggestions import nearest

Path = tuple[str, ...]

_OPENING = re.compile(r"(?<!\\)(\\*)\$\{")  # the look-behind keeps the search linear
_MAX_TEXT = 100_000  # characters a text may grow to
_MAX_COMPARED = 1000  # names that a mistaken one is compared with
_SINGLE_KINDS = ("bool", "int", "float", "str", "path", "literal")
_MAX_CHAIN = 100  # references and containers within one another while resolving


def resolve_references(
    root: MappingNode, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]
) -> MappingNode:
    """Replace every reference by what it refers to; the tree is left as it is, a new one is returned.

    Args:
        root: the merged tree, short forms not yet expanded.
        infos: the declared parameters: what is not set has its default.
        report: called with every reference that leads nowhere or to itself.
    """
    if not any(isinstance(node, Scalar) and "${" in node.text for node in walk(root)):
        return root
    made = _Resolver(root, infos, report).inside(root, ())
    return made if isinstance(made, MappingNode) else root


def escape(text: str) -> str:
    """`text` written so that it is read back as it stands: `${` becomes `\\${`."""
    return _OPENING.sub(lambda found: found.group(1) * 2 + "\\${", text)


class _Resolver:
    def __init__(
        self, root: MappingNode, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]
    ) -> None:
        self._root = root
        self._infos = infos
        self._report = report
        self._done: dict[Path, Node] = {}
        self._active: list[tuple[Path, Node]] = []
        self._broken: set[Path] = set()
        self._chain = 0
        self._weight = 0
        self._failures = 0

    def inside(self, node: Node, path: Path) -> Node:
        """`node`, which stands at `path`, with all references in it replaced."""
        if path in self._done:
            return self._done[path]
        if isinstance(node, Scalar) and "${" not in node.text:
            return node
        if isinstance(node, (ErrorNode, PythonValue)):
            return node
        self._chain += 1
        if isinstance(node, Scalar):
            made = self._scalar(node, path)
        elif isinstance(node, MappingNode):
            entries = {key: self.inside(item, (*path, key)) for key, item in node.entries.items()}
            made = replace(node, entries=entries)
        elif isinstance(node, SequenceNode):
            items = (self.inside(item, (*path, str(index))) for index, item in enumerate(node.items))
            made = replace(node, items=tuple(items))
        else:
            made = node
        self._chain -= 1
        self._done[path] = made
        return made

    def _scalar(self, node: Scalar, path: Path) -> Node:
        if any(path == active for active, _ in self._active):
            self._report_cycle(path)
            return ErrorNode(node.source)
        self._active.append((path, node))
        made = self._replace(node, path)
        self._active.pop()
        return ErrorNode(node.source) if path in self._broken else made

    def _replace(self, node: Scalar, path: Path) -> Node:
        """The value of a text with references in it."""
        pieces: list[str] = []
        position = grown = 0
        text = node.text
        while True:
            found = _OPENING.search(text, position)
            if found is None:
                break
            backslashes = found.group(1)
            pieces.append(text[position : found.start()] + "\\" * (len(backslashes) // 2))
            position = found.end()
            if len(backslashes) % 2:
                pieces.append("${")
                continue
            end = text.find("}", position)
            name = text[position:end].strip() if end >= 0 else text[position:].strip()
            if end < 0 or not name or "{" in name:
                return self._fail(node, path, "bad-reference", _malformed(name, end >= 0))
            target = self._target(node, path, name)
            if isinstance(target, ErrorNode):
                return ErrorNode(node.source)
            if end + 1 == len(text) and not any(pieces):
                return self._whole(node, path, target)
            position = end + 1
            embedded = _embedded(target)
            if embedded is None:
                what = "null" if is_null(target) else "a list or mapping"
                return self._fail(
                    node, path, "bad-reference", f"${{{name}}} is {what} and cannot be part of a text"
                )
            pieces.append(embedded)
            grown += len(embedded)
            if grown > _MAX_TEXT:
                return self._fail(
                    node, path, "config-too-large", f"this text grows beyond {_MAX_TEXT:,} characters"
                )
        pieces.append(text[position:])
        # text that references were joined into is text, whatever it looks like
        made = replace(node, text="".join(pieces), style="quoted")
        self._weight += made.weight
        if self._weight > MAX_WEIGHT:
            return self._fail(node, path, "config-too-large", "the references stand for too much text")
        return made

    def _whole(self, node: Scalar, path: Path, target: Node) -> Node:
        """A value that is one reference and nothing else keeps the type of what it refers to."""
        self._weight += target.weight
        if self._weight > MAX_WEIGHT:
            message = (
                f"with its references written out this configuration holds more than {MAX_WEIGHT:,} values"
            )
            return self._fail(node, path, "config-too-large", message)
        if len(path) + target.height > MAX_DEPTH:
            message = f"with this reference lists and mappings nest more than {MAX_DEPTH} deep"
            return self._fail(node, path, "config-too-deep", message)
        return replace(target, source=node.source, shadows=node.shadows, written=node.written)

    def _target(self, node: Scalar, path: Path, name: str) -> Node:
        if self._chain > _MAX_CHAIN:
            return self._fail(
                node, path, "bad-reference", f"more than {_MAX_CHAIN} references lead from one to the next"
            )
        if name.startswith(VARIABLE_PREFIX):
            variable = read_variable(name)
            return variable if isinstance(variable, Scalar) else self._fail(node, path, *variable)
        parts = tuple(name.split("."))
        target = self._find(parts)
        if target is not None:
            return ErrorNode(target.source) if self._is_misfit(target, name) else target
        if ":" in name:
            message = (
                f"${{{name}}} is not understood: a reference names another value, such as ${{output_dir}}"
            )
            return self._fail(node, path, "dangling-reference", message)
        self._failures += 1
        close = self._near(parts, path) if self._failures <= MAX_GUESSES else None
        message = f"${{{name}}} refers to nothing: there is no {quote(name)} in this configuration"
        if name in self._infos and self._infos[name].required:
            strays = [key for key in self._root.entries if key not in self._infos]
            if self._failures <= MAX_GUESSES and nearest(name, strays):
                return ErrorNode(node.source)  # misspelt where it is set: that is said there
            message = f"${{{name}}} refers to {name}, which is required and not set"
            close = None
        elif close is None and is_set(name):
            close = f"{VARIABLE_PREFIX}{name}"
            message += f"; ${{{close}}} is the variable of the environment"
        elif close is None:
            message += f"; \\${{{name}}} stands for the characters themselves"
        suggestion = f"${{{close}}}" if close else None
        return self._fail(node, path, "dangling-reference", message, suggestion)

    def _is_misfit(self, target: Node, name: str) -> bool:
        """Whether what is referred to cannot be right where it stands: that is said there, once."""
        info = self._infos.get(name)
        if info is None or info.slot is not None:
            return False
        if is_null(target):
            return not info.spec.nullable
        return isinstance(target, (MappingNode, SequenceNode)) and info.spec.kind in _SINGLE_KINDS

    def _find(self, parts: Path) -> Node | None:
        """The resolved node at `parts`: from the tree, its other spelling, or the declared default."""
        found = self._walk(self._root, parts)
        if found is not None:
            return found
        other = other_spelling(".".join(parts), self._infos)
        found = self._walk(self._root, tuple(other.split("."))) if other is not None else None
        if found is not None:
            return found
        declared = self._infos.get(parts[0])
        if declared is None or declared.required or parts[0] in self._root.entries:
            return None
        return self._walk(MappingNode(self._root.source, {parts[0]: default_node(declared.default)}), parts)

    def _walk(self, start: MappingNode, parts: Path) -> Node | None:
        node: Node = start
        for depth, part in enumerate(parts):
            if isinstance(node, Scalar) and "${" in node.text:
                node = self.inside(node, parts[:depth])
            if depth == 1 and parts[0] in self._infos and self._infos[parts[0]].slot is not None:
                node = name_component(node) or node
            if isinstance(node, ErrorNode):
                return node
            below = child(node, part)
            if below is None:
                return None
            node = below
        return self.inside(node, parts)

    def _near(self, parts: Path, path: Path) -> str | None:
        known = set(self._infos) | set(self._root.entries)
        for key, node in self._root.entries.items():
            if isinstance(node, MappingNode):
                known |= {f"{key}.{name}" for name in node.entries}
        known |= {info.short_for for info in self._infos.values() if info.short_for}
        if len(known) > _MAX_COMPARED:
            return None
        return nearest(".".join(parts), sorted(known - {path[0]}))  # nothing refers to itself

    def _report_cycle(self, path: Path) -> None:
        start = next(index for index, (active, _) in enumerate(self._active) if active == path)
        ring = self._active[start:]
        self._broken.update(active for active, _ in ring)
        first = min(range(len(ring)), key=lambda index: ring[index][1].source.sort_key())
        names = [".".join(active) for active, _ in [*ring[first:], *ring[: first + 1]]]
        if len(names) > 6:
            names = [*names[:3], "...", *names[-2:]]
        where, node = ring[first]
        chain = " -> ".join(names)
        self._report(
            Diagnostic(
                "cyclic-reference", ".".join(where), f"references go in a circle: {chain}", node.source
            )
        )

    def _fail(
        self, node: Scalar, path: Path, code: str, message: str, suggestion: str | None = None
    ) -> ErrorNode:
        self._report(Diagnostic(code, ".".join(path), message, node.source, suggestion))
        return ErrorNode(node.source)


def _malformed(name: str, closed: bool) -> str:
    if not closed:
        return "this reference is never closed: } is missing (write \\${ for the characters themselves)"
    if not name:
        return "this reference is empty: write ${name}, or \\${ for the characters themselves"
    return "a reference cannot stand inside another"


def _embedded(node: Node) -> str | None:
    """What a value is as part of a text; None for null, lists and mappings."""
    if is_null(node):
        return None
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, PythonValue):
        if isinstance(node.value, bool):
            return "true" if node.value else "false"
        return str(node.value)
    return None
