"""From nodes to typed values: the type a place asks for decides what a lexeme means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tune.config.component import COMPONENT_KEY
from tune.config.diagnostics import DEFAULT, Diagnostic, printable, quote, shorten
from tune.config.nodes import (
    ErrorNode,
    MappingNode,
    Node,
    PythonValue,
    Scalar,
    SequenceNode,
    core_value,
    is_null,
    yaml_1_1_bool,
)
from tune.config.scalars import REFUSED, Reading, read_scalar
from tune.config.typing import ANY, TypeSpec


class Converter:
    """Converts nodes to values and reports what does not fit.

    Args:
        report: called with every problem.
        component: converts a component node; gets the node, its path and the slot (None inside arguments).
    """

    def __init__(
        self, report: Callable[[Diagnostic], None], component: Callable[[Node, str, Any], Any]
    ) -> None:
        self._report = report
        self._component = component
        # Of the field at hand: its limits hold for advice, too.
        self.find_fault: Callable[[Any], object] | None = None

    def convert(self, node: Node, spec: TypeSpec, path: str, slot: Any = None) -> Any:
        """Return the value of `node` as a `spec`, or `REFUSED` after reporting why there is none."""
        if isinstance(node, ErrorNode):
            return REFUSED
        if _means_null(node, spec):
            return (
                None if spec.nullable or spec.kind in ("any", "none") else self._refuse_null(node, spec, path)
            )
        if spec.kind == "component":
            return self._component(node, path, slot)
        if spec.kind == "any":
            return self._untyped(node, path)
        if spec.kind == "union":
            return self._union(node, spec, path, slot)
        if spec.kind in ("list", "vtuple", "tuple"):
            return self._list(node, spec, path, slot)
        if spec.kind == "dict":
            return self._dict(node, spec, path)
        if spec.kind == "object":
            if isinstance(node, MappingNode) and COMPONENT_KEY in node.entries:
                return self._component(node, path, None)
            if isinstance(node, PythonValue):
                return node.value
            return self._wrong(node, spec, path)
        value, suggestion, reason = read_scalar(node, spec)
        if value is REFUSED:
            return self._wrong(node, spec, path, suggestion, reason)
        return value

    def _untyped(self, node: Node, path: str) -> Any:
        if isinstance(node, Scalar):
            if "\0" in node.text:
                return self._wrong(node, ANY, path, None, "a text cannot hold the NUL character")
            self._note_word(node, path)
            return node.text if node.style == "quoted" else core_value(node.text)
        if isinstance(node, PythonValue):
            return node.value
        if isinstance(node, MappingNode):
            if COMPONENT_KEY in node.entries:
                return self._component(node, path, None)
            return self._dict(node, TypeSpec("dict", (ANY,)), path)
        return self._list(node, TypeSpec("list", (ANY,)), path, None)

    def _list(self, node: Node, spec: TypeSpec, path: str, slot: Any) -> Any:
        if isinstance(node, MappingNode) and spec.kind == "list":
            from tune.config.torchtune_compat import expand_file_names

            node = expand_file_names(node) or node
        if not isinstance(node, SequenceNode):
            suggestion = None
            if isinstance(node, Scalar) and "\n" not in node.text:
                parts = [part.strip() for part in node.text.split(",") if part.strip()]
                inner = spec.args if spec.kind == "tuple" else (spec.args[:1] or (ANY,)) * len(parts)
                if len(parts) == len(inner) and all(map(_reads_as, parts, inner)):
                    suggestion = f"[{', '.join(parts)}]"
            return self._wrong(node, spec, path, suggestion)
        if spec.kind == "tuple":
            if len(node.items) != len(spec.args):
                reason = f"it has {len(node.items)}"
                return self._wrong(node, spec, path, None, reason)
            specs = spec.args
        else:
            specs = (spec.args[0] if spec.args else ANY,) * len(node.items)
        values = [
            self.convert(item, item_spec, f"{path}.{index}", slot)
            for index, (item, item_spec) in enumerate(zip(node.items, specs, strict=True))
        ]
        if any(value is REFUSED for value in values):
            return REFUSED
        return values if spec.kind == "list" else tuple(values)

    def _dict(self, node: Node, spec: TypeSpec, path: str) -> Any:
        if not isinstance(node, MappingNode):
            return self._wrong(node, spec, path)
        inner = spec.args[0] if spec.args else ANY
        values = {key: self.convert(item, inner, f"{path}.{key}") for key, item in node.entries.items()}
        return REFUSED if any(value is REFUSED for value in values.values()) else values

    def _union(self, node: Node, spec: TypeSpec, path: str, slot: Any) -> Any:
        kinds: tuple[str, ...] = ()
        if isinstance(node, SequenceNode):
            kinds = ("list", "vtuple", "tuple")
        elif isinstance(node, MappingNode):
            kinds = ("dict", "component", "object")
        else:
            for member in spec.args:
                if member.kind == "component":
                    return self.convert(node, member, path, slot)
            # a whole number before a number, and text only if nothing else fits: the order of specificity
            for kind in ("literal", "bool", "int", "float", "path", "str"):
                for member in spec.args:
                    if member.kind == kind:
                        value, _, _ = read_scalar(node, member)
                        if value is not REFUSED:
                            if kind == "str" and any(other.kind == "bool" for other in spec.args):
                                self._note_word(node, path)
                            return value
        for member in spec.args:
            if member.kind in kinds:
                return self.convert(node, member, path, slot)
        if isinstance(node, PythonValue) and any(member.kind == "object" for member in spec.args):
            return node.value
        scalars = [member for member in spec.args if member.kind in ("bool", "int", "float", "literal")]
        _, suggestion, reason = read_scalar(node, scalars[-1]) if scalars else Reading()
        return self._wrong(node, spec, path, suggestion, reason)

    def _note_word(self, node: Node, path: str) -> None:
        warning = yaml_1_1_bool(node, node.written or path)
        if warning is not None:
            self._report(warning)

    def _refuse_null(self, node: Node, spec: TypeSpec, path: str) -> Any:
        message = f"{node.written or path} cannot be null; it takes {spec.describe()}"
        suggestion = None
        if isinstance(node, Scalar) and node.text and spec.kind in ("str", "path"):
            message += " (quote it if the text is meant)"
            suggestion = f'"{node.text}"'
        return self.refuse("null-not-allowed", path, message, node, suggestion)

    def _wrong(
        self, node: Node, spec: TypeSpec, path: str, suggestion: str | None = None, reason: str = ""
    ) -> Any:
        message = f"{node.written or path} takes {spec.describe()}, not {show(node)}"
        if suggestion is not None and self.find_fault is not None and spec.kind in ("int", "float"):
            value = read_scalar(Scalar(DEFAULT, suggestion), spec)[0]
            suggestion = suggestion if self.find_fault(value) is None else None
        if reason:
            message += f": {reason}"
        code = "not-a-choice" if spec.kind == "literal" else "wrong-type"
        return self.refuse(code, path, message, node, suggestion)

    def refuse(self, code: str, path: str, message: str, node: Node, suggestion: str | None = None) -> Any:
        """Report a fault of the value of `node`, and return `REFUSED`."""
        self._report(Diagnostic(code, node.written or path, message, node.source, suggestion, shadowed(node)))
        return REFUSED


def shadowed(node: Node) -> str | None:
    """What `node` overrides, in words, or None."""
    if node.shadows is None:
        return None
    return f"{show(node.shadows)} from {node.shadows.source.describe()}"


def show(node: Node) -> str:
    """A value as it was written, short and printable."""
    if isinstance(node, Scalar):
        if node.style == "quoted":
            return f'the text "{shorten(printable(node.text))}"'
        return quote(node.text) if node.text else "nothing"
    if isinstance(node, PythonValue):
        return shorten(printable(repr(node.value)))
    if isinstance(node, SequenceNode):
        return "a list"
    return "a component" if isinstance(node, MappingNode) and COMPONENT_KEY in node.entries else "a mapping"


def _reads_as(text: str, spec: TypeSpec) -> bool:
    """Whether a plain word is a value of this type, as far as one word can be."""
    members = spec.args if spec.kind == "union" else (spec,)
    word = Scalar(DEFAULT, text)
    return any(member.kind == "any" or read_scalar(word, member)[0] is not REFUSED for member in members)


def _means_null(node: Node, spec: TypeSpec) -> bool:
    if isinstance(node, Scalar) and node.style == "verbatim":
        # `key=` and `key=~` are a text's own values; for everything else they say null
        text_target = spec.kind in ("str", "path") or any(arg.kind in ("str", "path") for arg in spec.args)
        return is_null(node) or (node.text in ("", "~") and not text_target)
    return is_null(node)
