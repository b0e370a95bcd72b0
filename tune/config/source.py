"""Reading what one Python file defines from its text, without importing it.

Importing torch takes more than a second and importing a stranger's package runs it; parsing a file takes some
milliseconds and runs nothing.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

DefinitionNode = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_MAX_SOURCE_BYTES = 4_000_000


@dataclass(frozen=True)
class Module:
    """A Python source file, found but not imported."""

    name: str
    file: Path
    is_package: bool

    @property
    def package(self) -> str:
        """The package that relative imports in this module start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Definition:
    """A class or function in a file, with its syntax tree."""

    module: Module
    name: str
    node: DefinitionNode

    @property
    def path(self) -> str:
        """Dotted path of the place of definition."""
        return f"{self.module.name}.{self.name}"

    @property
    def is_class(self) -> bool:
        """Whether it is a class; else it is a function."""
        return isinstance(self.node, ast.ClassDef)

    @property
    def bases(self) -> list[ast.expr]:
        """The bases that a class names."""
        return self.node.bases if isinstance(self.node, ast.ClassDef) else []


@dataclass(frozen=True)
class Import:
    """A name bound by an import line: to `name` in `module`, or to `module` itself where `name` is None."""

    module: str
    name: str | None


@dataclass(frozen=True)
class Value:
    """A name bound to the value of an expression."""

    expression: ast.expr


Binding = Definition | Import | Value


def read_binding(module: Module, name: str) -> Binding | None:
    """Return what `name` is last bound to at the top level of `module`, or None."""
    return _read(module).bindings.get(name)


def is_python(module: Module) -> bool:
    """Return whether a file can be read, and is Python that this interpreter understands."""
    return _read(module).is_python


def read_star_imports(module: Module) -> list[str]:
    """Return the modules from which `module` imports everything."""
    return [
        _absolute(module, statement)
        for statement in _read(module).statements
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
    ]


def read_all(module: Module) -> tuple[str, ...] | None:
    """Return the ``__all__`` of `module`, or None where it has none or computes it."""
    names: list[str] | None = None
    for statement in _read(module).statements:
        if not isinstance(statement, (ast.Assign, ast.AugAssign)):
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if dotted_text(target) != "__all__":
            continue
        try:
            listed = ast.literal_eval(statement.value)
        except (ValueError, TypeError, SyntaxError):
            return None
        names = [*(names or []), *(name for name in listed if isinstance(name, str))]
    return None if names is None else tuple(names)


def read_public_names(module: Module) -> list[str]:
    """Return the names that `module` defines or imports by name, without those that start with an underscore."""
    bindings = _read(module).bindings
    return [
        name
        for name, bound in bindings.items()
        if not name.startswith("_")
        and name != "*"
        and (isinstance(bound, Definition) or (isinstance(bound, Import) and bound.name is not None))
    ]


def read_own_names(module: Module) -> tuple[str, ...]:
    """Return the public names that `module` itself defines or assigns, in order, without imports and constants."""
    bindings = _read(module).bindings
    own = (name for name, bound in bindings.items() if not isinstance(bound, Import))
    return tuple(name for name in own if not (name.startswith("_") or name.isupper()))


def read_late_doc(module: Module, name: str) -> str:
    """Return the text that `module` assigns to ``name.__doc__`` (torch's optimizers do), as far as it is literal."""
    for statement in _read(module).statements:
        if isinstance(statement, ast.Assign) and dotted_text(statement.targets[0]) == f"{name}.__doc__":
            found = [node for node in ast.walk(statement.value) if isinstance(node, ast.Constant)]
            found.sort(key=lambda node: (node.lineno, node.col_offset))
            return inspect.cleandoc("".join(str(node.value) for node in found))
    return ""


def dotted_text(expression: ast.expr) -> str | None:
    """Return the dotted name that `expression` spells, or None where it is something else."""
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        base = dotted_text(expression.value)
        return None if base is None else f"{base}.{expression.attr}"
    return None


def _bind(module: Module, statements: Iterable[ast.stmt]) -> Mapping[str, Binding]:
    """Return what each name is last bound to, in the order in which the names are first bound."""
    bound: dict[str, Binding] = {}
    for statement in statements:
        if isinstance(statement, DefinitionNode):
            is_overload = any(
                (dotted_text(each) or "").endswith("overload") for each in statement.decorator_list
            )
            if not is_overload:
                bound[statement.name] = Definition(module, statement.name, statement)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            bound |= {target.id: Value(statement.value) for target in targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.ImportFrom):
            source = _absolute(module, statement)
            bound |= {alias.asname or alias.name: Import(source, alias.name) for alias in statement.names}
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                bound[name] = Import(alias.name if alias.asname else name, None)
    return bound


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")
    base = base[: len(base) - (statement.level - 1)]
    return ".".join([*base, *([statement.module] if statement.module else [])])


@dataclass(frozen=True)
class _Contents:
    """The top-level statements of a file, also those inside if, with and try, and what they bind names to."""

    statements: tuple[ast.stmt, ...] = ()
    bindings: Mapping[str, Binding] = field(default_factory=dict)
    is_python: bool = True


def _read(module: Module) -> _Contents:
    """Return what stands in a file; nothing where it is no Python."""
    try:
        stamp = module.file.stat()
        return _parse(module, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return _Contents(is_python=False)


@lru_cache(maxsize=256)
def _parse(module: Module, _modified: int, _size: int) -> _Contents:
    with open(module.file, "rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(stream.read(_MAX_SOURCE_BYTES))
    statements = tuple(_flatten(tree.body))
    for statement in statements:
        for inner in (statement, *(statement.body if isinstance(statement, ast.ClassDef) else ())):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                del inner.body[1:]  # behind the docstring: most of the tree, and of no interest
    return _Contents(statements, _bind(module, statements))


def _flatten(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, going into if, with and try."""
    for statement in statements:
        if isinstance(statement, (ast.If, ast.With)):
            yield from _flatten(statement.body)
            yield from _flatten(getattr(statement, "orelse", []))
        elif isinstance(statement, ast.Try):
            for handler in statement.handlers:  # first, so that the body's binding is the one that counts
                yield from _flatten(handler.body)
            yield from _flatten([*statement.body, *statement.orelse, *statement.finalbody])
        else:
            yield statement
