"""The arguments of a class or function, read from its source: nothing is imported or called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tune.config.lookup import NotFound, find_definition, resolve_expression
from tune.config.source import Definition, Module, Value, dotted_text, read_binding, read_late_doc
from tune.config.typing import TypeSpec

# Classes whose own bases and constructor need no reading: one that slots ask for, and bases that take nothing.
_MODULE = "torch.nn.modules.module.Module"
_BARE_BASES = ("object", "ABC", "Generic", "Protocol", "TypedDict")
_PLAIN_KINDS = {"none", "bool", "int", "float", "str", "path", "list", "tuple", "vtuple", "dict", "literal"}


@dataclass(frozen=True)
class Parameter:
    """One argument of a component.

    Args:
        name: as it is written in a config.
        type: what may be written there; kind "any" where the annotation says nothing checkable.
        required: whether it has no default.
        default: its default where that is a plain value, else None (see `default_text`).
        default_text: the default as the source spells it, "" where there is none.
        kind: "positional" (cannot be given by name), "either" or "keyword".
    """

    name: str
    type: TypeSpec
    required: bool
    default: Any = None
    default_text: str = ""
    kind: str = "either"


@dataclass(frozen=True)
class Signature:
    """What a component takes and what it is.

    Args:
        path: where it is defined.
        is_class: whether it is a class; else it is a function.
        parameters: its arguments by name, in order, without self.
        takes_any_keyword: whether it has ``**kwargs`` (unknown arguments cannot be told).
        takes_any_positional: whether it has ``*args``.
        kinds: paths of the class and all its bases; for a function, of the class it is annotated to return.
        kinds_known: whether every base (or the return annotation) could be followed.
        is_interface: whether it is a Protocol, which cannot be built.
    """

    path: str
    is_class: bool
    parameters: dict[str, Parameter] = field(default_factory=dict)
    takes_any_keyword: bool = False
    takes_any_positional: bool = False
    kinds: frozenset[str] = frozenset()
    kinds_known: bool = True
    is_interface: bool = False


def read_signature(path: str) -> Signature | NotFound:
    """Return the signature of the class or function that dotted `path` names, without importing it."""
    found = find_definition(path)
    return found if isinstance(found, NotFound) else signature_of(found)


def signature_of(found: Definition) -> Signature:
    """Return the signature of a class or function that was found in a file."""
    if isinstance(found.node, ast.ClassDef):
        family = list(_class_and_bases(found))
        parameters, any_positional, any_keyword = _constructor(family)
    else:
        family = _returned(found.module, found.node.returns)
        parameters, any_positional, any_keyword = _read_arguments(found.module, found.node, skip_first=False)
    return Signature(
        path=found.path,
        is_class=found.is_class,
        parameters=parameters,
        takes_any_keyword=any_keyword,
        takes_any_positional=any_positional,
        kinds=frozenset(member.path for member in family if member is not None),
        kinds_known=None not in family,
        is_interface=any(_last_name(base) == "Protocol" for base in found.bases),
    )


def canonical_path(path: str) -> str:
    """Return where the class that `path` names is defined, or `path` itself where it cannot be found."""
    found = find_definition(path)
    return path if isinstance(found, NotFound) else found.path


def read_doc(path: str, *, constructor: bool = True) -> str:
    """Return the docstring of the class or function that `path` names, with that of its constructor, or ""."""
    found = find_definition(path)
    if isinstance(found, NotFound):
        return ""
    text = ast.get_docstring(found.node) or read_late_doc(found.module, found.name)
    node = found.node if constructor else None
    if isinstance(node, ast.FunctionDef):
        shared = _shared_settings(found.module, node.args) or {}
        text = "\n".join([text, *(f"{name}: {help}" for name, (_, _, _, help) in shared.items())])
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            text = f"{text}\n\n{ast.get_docstring(statement) or ''}".strip()
    return text


def read_argument_help(doc: str, names: Iterable[str]) -> dict[str, str]:
    """Return what a docstring says about each argument in `names`, where it says something."""
    texts: dict[str, str] = {}
    for name in names:
        pattern = rf"^([ \t]*){re.escape(name)}[ \t]*(?:\([^\n]*\))?[ \t]*:[ \t]*(.+(?:\n\1[ \t]+\S.*)*)"
        match = re.search(pattern, doc, re.MULTILINE)
        if match:
            texts[name] = " ".join(match.group(2).split())
    return texts


def _returned(module: Module, annotation: ast.expr | None) -> list[Definition | None]:
    """Return the class that a function is annotated to return and its bases, with None for what is not known."""
    if annotation is not None and TypeSpec.from_annotation_ast(annotation).kind in _PLAIN_KINDS:
        return []
    found = None if annotation is None else resolve_expression(module, annotation)
    return list(_class_and_bases(found)) if isinstance(found, Definition) and found.is_class else [None]


def _class_and_bases(found: Definition) -> Iterator[Definition | None]:
    """Yield a class and all its bases, depth first; None for a base that cannot be followed."""
    seen: set[str] = set()
    waiting: list[Definition | None] = [found]
    while waiting:
        member = waiting.pop(0)
        if member is None:
            yield None
            continue
        if member.path in seen:
            continue
        seen.add(member.path)
        yield member
        bases: list[Definition | None] = []
        for base in member.bases if member.path != _MODULE else ():
            if _last_name(base.value if isinstance(base, ast.Subscript) else base) in _BARE_BASES:
                continue
            target = resolve_expression(member.module, base)
            bases.append(target if isinstance(target, Definition) and target.is_class else None)
        waiting = bases + waiting


Arguments = tuple[dict[str, Parameter], bool, bool]


def _constructor(family: list[Definition | None]) -> Arguments:
    """Return the constructor's arguments: of the first class in `family` that has one, or dataclass fields."""
    for member in family:
        if member is None:
            return {}, True, True
        if member.path == _MODULE or not isinstance(member.node, ast.ClassDef):
            continue  # takes nothing of its own
        node = member.node
        for name in ("__init__", "__new__"):
            for statement in reversed(node.body):
                if isinstance(statement, ast.FunctionDef) and statement.name == name:
                    return _read_arguments(member.module, statement, skip_first=True)
        if _is_dataclass(node):
            return _dataclass_fields(family[family.index(member) :]), False, False
    return {}, False, False


def _read_arguments(
    module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, *, skip_first: bool
) -> Arguments:
    arguments = node.args
    positional = [(arg, "positional") for arg in arguments.posonlyargs] + [
        (arg, "either") for arg in arguments.args
    ]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    rows = [(arg, kind, default) for (arg, kind), default in zip(positional, defaults, strict=True)]
    if skip_first:
        rows = rows[1:]
    rows += [(arg, "keyword", default) for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    parameters = {
        arg.arg: _parameter(module, arg.arg, arg.annotation, default, kind) for arg, kind, default in rows
    }
    shared = _shared_settings(module, arguments)
    for name, (home, spec, default, _) in (shared or {}).items():
        parameters[name] = _parameter(home, name, spec, default, "keyword")
    return parameters, arguments.vararg is not None, arguments.kwarg is not None and shared is None


def _shared_settings(
    module: Module, arguments: ast.arguments
) -> dict[str, tuple[Module, ast.expr, ast.expr, str]] | None:
    """Return what ``**settings: Unpack[D]`` stands for, see `tune.utils.settings`; None where there is nothing like it.

    Each setting has the module that declares it, its type, its default and its help.
    """
    annotation = arguments.kwarg.annotation if arguments.kwarg is not None else None
    if not isinstance(annotation, ast.Subscript) or _last_name(annotation.value) != "Unpack":
        return None
    declared = resolve_expression(module, annotation.slice)
    if not isinstance(declared, Definition):
        return None
    settings = {}
    for member in reversed(list(_class_and_bases(declared))):  # its bases first
        if member is None:
            return None  # a base that cannot be followed
        for statement in member.node.body:
            match statement:
                case ast.AnnAssign(
                    target=ast.Name(id=name),
                    annotation=ast.Subscript(slice=ast.Tuple(elts=[spec, ast.Call(args=[default, help])])),
                ):
                    text = help.value if isinstance(help, ast.Constant) else ""
                    settings[name] = (member.module, spec, default, str(text))
                case ast.AnnAssign():
                    return None
    return settings


def _parameter(
    module: Module, name: str, annotation: ast.expr | None, default: ast.expr | None, kind: str
) -> Parameter:
    if default is None:
        return Parameter(name, TypeSpec.from_annotation_ast(annotation), required=True, kind=kind)
    is_plain, value = _plain_value(module, default)
    spec = TypeSpec.from_default(value) if annotation is None else TypeSpec.from_annotation_ast(annotation)
    if is_plain and value is None:
        spec = spec.optional()  # `x: int = None` means Optional[int]
    text = repr(value) if is_plain else ast.unparse(default)
    return Parameter(name, spec, required=False, default=value, default_text=text, kind=kind)


def _plain_value(module: Module, expression: ast.expr) -> tuple[bool, Any]:
    """Return whether a default is a plain value, and that value; a constant of the module counts as one."""
    if isinstance(expression, ast.Name):
        binding = read_binding(module, expression.id)
        if isinstance(binding, Value):
            expression = binding.expression
    try:
        return True, ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False, None


def _is_dataclass(node: ast.ClassDef) -> bool:
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return any(_last_name(decorator) == "dataclass" for decorator in calls)


def _last_name(expression: ast.expr) -> str:
    return (dotted_text(expression) or "").split(".")[-1]


def _dataclass_fields(family: list[Definition | None]) -> dict[str, Parameter]:
    """Return the fields that a dataclass takes, those of its bases first."""
    fields: dict[str, Parameter] = {}
    for member in reversed(family):
        node = member.node if member is not None else None
        if member is None or not isinstance(node, ast.ClassDef) or not _is_dataclass(node):
            continue
        for statement in node.body:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            annotation = ast.unparse(statement.annotation)
            name = statement.target.id
            if "ClassVar" in annotation or annotation.endswith("KW_ONLY"):
                continue
            parameter = _field(member.module, name, statement)
            if parameter is not None:
                fields[name] = parameter
    return fields


def _field(module: Module, name: str, statement: ast.AnnAssign) -> Parameter | None:
    value = statement.value
    if isinstance(value, ast.Call) and _last_name(value.func) == "field":
        options = {keyword.arg: keyword.value for keyword in value.keywords}
        init = options.get("init")
        if isinstance(init, ast.Constant) and init.value is False:
            return None
        value = options.get("default") or options.get("default_factory")
    return _parameter(module, name, statement.annotation, value, "either")
