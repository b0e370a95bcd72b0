"""What a configuration value may be: a small, closed set of type descriptors.

A `TypeSpec` is made from a live hint (params dataclasses), from the syntax tree of an annotation (component
signatures are read without importing them) or from a plain default. What cannot be described becomes "any": such
a value is typed by YAML 1.2's core rules and not checked further.
"""

from __future__ import annotations

import ast
import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

# kind        args / choices
# any         -                     unchecked
# none bool int float str path      -
# literal     choices = the values
# list        args = (item,)        list[T], Sequence[T], Iterable[T]
# tuple       args = one per place  tuple[T1, T2]
# vtuple      args = (item,)        tuple[T, ...]
# dict        args = (value,)       dict[str, T]; keys are always text
# union       args = members        at least two, never "none" (that is `nullable`)
# component   -                     a slot of the params (tune.config.Component)
# object      label = what it is    only a nested component can provide it (Tensor, Module)

_SIMPLE = {"bool": "bool", "int": "int", "float": "float", "str": "str", "Any": "any", "object": "any"}
_PATHS = {"Path", "PurePath", "PathLike"}
_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence"}
_TUPLES = {"tuple", "Tuple"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_OBJECTS = {"Tensor", "Module", "Parameter"}
_WRAPPERS = {"Annotated", "Final", "Required", "NotRequired"}

_WORDS = {
    "any": "any value",
    "none": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "path": "a path",
    "component": "a component (a name, a dotpath, or a mapping with _component_)",
}


@dataclass(frozen=True)
class TypeSpec:
    """One type a configuration value can have.

    Args:
        kind: one of the kinds in the table above.
        args: inner types, see the table.
        nullable: whether `null` is a value of this type.
        choices: the values of a `literal`.
        label: what an `object` is called in messages.
    """

    kind: str
    args: tuple[TypeSpec, ...] = ()
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    label: str = ""

    def optional(self) -> TypeSpec:
        """This type, with `null` allowed."""
        return self if self.nullable or self.kind in ("any", "none") else replace(self, nullable=True)

    def required(self) -> TypeSpec:
        """This type, with `null` not allowed."""
        return replace(self, nullable=False) if self.nullable else self

    def describe(self) -> str:
        """What a person should write, in words: "a whole number or null"."""
        words = self._describe()
        return f"{words} or null" if self.nullable else words

    def _describe(self) -> str:
        if self.kind == "literal":
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.kind in ("list", "vtuple"):
            return f"a list of {_plural(self.args[0])}" if self.args else "a list"
        if self.kind == "tuple":
            return f"a list of {len(self.args)}: " + ", ".join(arg.describe() for arg in self.args)
        if self.kind == "dict":
            return "a mapping"
        if self.kind == "union":
            return " or ".join(dict.fromkeys(arg._describe() for arg in self.args))
        if self.kind == "object":
            return f"an object ({self.label}), built by a nested _component_"
        return _WORDS[self.kind]

    def short(self) -> str:
        """The type as one would annotate it: "int", "list[str]", "Optional[float]"."""
        if self.kind == "literal":
            text = "|".join(str(choice) for choice in self.choices)
        elif self.kind == "union":
            text = "|".join(arg.short() for arg in self.args)
        elif self.kind == "vtuple":
            text = f"list[{self.args[0].short()}]"
        elif self.kind == "dict":
            text = "dict"
        elif self.kind == "object":
            text = self.label
        else:
            inner = ", ".join(arg.short() for arg in self.args)
            text = f"{self.kind}[{inner}]" if inner else self.kind
        return f"Optional[{text}]" if self.nullable else text

    @staticmethod
    def from_default(value: Any) -> TypeSpec:
        """The type of an argument that has a plain default and no annotation."""
        if isinstance(value, bool):
            return BOOL
        if isinstance(value, int):
            return union_of([INT, FLOAT])  # `gamma=1` usually means any number
        if isinstance(value, float):
            return FLOAT
        if isinstance(value, str):
            return STR
        return ANY

    @staticmethod
    def from_hint(hint: Any) -> TypeSpec:
        """The type a live, evaluated hint describes (see `typing.get_type_hints`), by how it is written."""
        return _from_text(hint if isinstance(hint, str) else inspect.formatannotation(hint))

    @staticmethod
    def from_annotation_ast(node: ast.expr | None) -> TypeSpec:
        """The type an annotation describes, read from its syntax tree; nothing is evaluated or imported."""
        return ANY if node is None else _from_ast(node)


ANY = TypeSpec("any")
NONE = TypeSpec("none")
BOOL = TypeSpec("bool")
INT = TypeSpec("int")
FLOAT = TypeSpec("float")
STR = TypeSpec("str")
PATH = TypeSpec("path")
COMPONENT = TypeSpec("component")


def union_of(members: list[TypeSpec]) -> TypeSpec:
    """One type for several: nulls become `nullable`, objects give way to what YAML can write."""
    nullable = any(member.kind == "none" or member.nullable for member in members)
    flat: list[TypeSpec] = []
    for member in members:
        flat.extend(member.args if member.kind == "union" else [member])
    flat = [member.required() for member in flat if member.kind != "none"]
    flat = list(dict.fromkeys(flat))
    # `float | Tensor` in a config is a number: nobody writes a tensor in YAML.
    flat = [member for member in flat if member.kind != "object"] or flat[:1]
    if {"path", "str"} <= {member.kind for member in flat}:
        flat = [member for member in flat if member.kind != "path"]
    if not flat:
        return NONE
    if any(member.kind == "any" for member in flat):
        return ANY
    spec = flat[0] if len(flat) == 1 else TypeSpec("union", tuple(flat))
    return spec.optional() if nullable else spec


def literal_of(choices: list[Any]) -> TypeSpec:
    """A choice among plain values; `None` among them becomes `nullable`."""
    values = tuple(choice for choice in choices if choice is not None)
    spec = TypeSpec("literal", choices=values) if values else NONE
    return spec.optional() if len(values) != len(choices) else spec


def _plural(spec: TypeSpec) -> str:
    words = {"int": "whole numbers", "float": "numbers", "str": "texts", "bool": "true/false values"}
    return words.get(spec.kind, "values" if spec.kind == "any" else f"items, each {spec.describe()}")


def _generic(name: str, args: list[TypeSpec], ellipsis: bool = False) -> TypeSpec | None:
    """A container by its bare name; None if the name is not one we know."""
    if name in _LISTS:
        return TypeSpec("list", (args[0] if args else ANY,))
    if name in _TUPLES:
        if ellipsis or not args:
            return TypeSpec("vtuple", (args[0] if args else ANY,))
        return TypeSpec("tuple", tuple(args))
    if name in _DICTS:
        return TypeSpec("dict", (args[1] if len(args) == 2 else ANY,))
    return None


def _bare(name: str) -> TypeSpec:
    """A type by its unqualified name."""
    if name in _SIMPLE:
        return TypeSpec(_SIMPLE[name])
    if name in _PATHS:
        return PATH
    if name in ("None", "NoneType"):
        return NONE
    if name == "Component":
        return COMPONENT
    if name in _OBJECTS:
        return TypeSpec("object", label=name)
    return _generic(name, []) or ANY


@functools.lru_cache(maxsize=512)
def _from_text(text: str) -> TypeSpec:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return ANY
    return _from_ast(tree.body)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _from_ast(node: ast.expr) -> TypeSpec:
    if isinstance(node, ast.Constant):
        if node.value is None:
            return NONE
        return _from_text(node.value) if isinstance(node.value, str) else ANY
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return union_of([_from_ast(node.left), _from_ast(node.right)])
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _bare(_last_name(node))
    if not isinstance(node, ast.Subscript):
        return ANY
    name = _last_name(node.value)
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        if all(isinstance(item, (ast.Constant, ast.UnaryOp)) for item in inner):
            return literal_of([ast.literal_eval(item) for item in inner])
        return ANY
    if name == "Optional":
        return union_of([_from_ast(inner[0]), NONE])
    if name == "Union":
        return union_of([_from_ast(item) for item in inner])
    if name in _WRAPPERS:
        return _from_ast(inner[0])
    ellipsis = isinstance(inner[-1], ast.Constant) and inner[-1].value is Ellipsis
    args = [_from_ast(i) for i in inner if not (isinstance(i, ast.Constant) and i.value is Ellipsis)]
    return _generic(name, args, ellipsis) or ANY
