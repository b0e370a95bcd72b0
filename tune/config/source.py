"""Reading what one Python file defines from its text, without importing it.

Importing torch takes more than a second and importing a stranger's package runs it; finding a class in a file
takes milliseconds and runs nothing. A file is cut into its top-level statements by their indentation, and only
the few that matter are parsed: torch's files are thousands of lines long.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

DefinitionNode = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_MAX_SOURCE_BYTES = 4_000_000
# A line that starts a new top-level statement: not indented, not a closing bracket, quote, comment or `else`.
_STATEMENT_START = re.compile(r"^(?!(?:else|elif|except|finally)\b)[@A-Za-z_]", re.MULTILINE)
_CLASS_HEADER = re.compile(r"^class[ \t]+\w+[ \t]*(\([^:]*?\))?[ \t]*:", re.MULTILINE)
_DOCSTRING = re.compile(r"""\s*[rRuU]?(\"{3}|'{3})(.*?)\1""", re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Za-z]\w*)[ \t]*=(?!=)")
_DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)


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
    """A class or function in a file; its text is parsed only when `node` is asked for."""

    module: Module
    name: str
    text: str

    @property
    def path(self) -> str:
        """Dotted path of the place of definition."""
        return f"{self.module.name}.{self.name}"

    @cached_property
    def is_class(self) -> bool:
        match = _DEFINITION.search(self.text)
        return match is not None and match.group().startswith("class")

    @cached_property
    def bases(self) -> list[ast.expr] | None:
        """The bases a class names; None if this is no class. Its body is not parsed for it: it may be long."""
        header = _CLASS_HEADER.search(self.text)
        statements = _parse(header.group() + " pass") if header is not None else None
        node = statements[0] if statements else self.node
        return node.bases if isinstance(node, ast.ClassDef) else None

    @property
    def doc(self) -> str:
        """The docstring, "" without one. For a class its text is searched, not parsed."""
        header = _CLASS_HEADER.search(self.text)
        if header is not None:
            literal = _DOCSTRING.match(self.text, header.end())
            return inspect.cleandoc(literal.group(2)) if literal else ""
        return (ast.get_docstring(self.node) or "") if self.node is not None else ""

    @cached_property
    def node(self) -> DefinitionNode | None:
        """The syntax tree, or None where the file is not valid Python for this interpreter."""
        statements = _parse(self.text)
        if statements is None:  # text at the margin inside a docstring cut the definition short
            statements = _parse(_read_chunks(self.module.file)[0])
        for statement in reversed(list(_flatten(statements or ()))):
            if isinstance(statement, DefinitionNode) and statement.name == self.name:
                return statement
        return None


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
    binding: Binding | None = None
    for text, defined in _read_statements(module, name):
        if defined == name:
            header = text[: text.index(defined)]
            if "overload" not in header:
                binding = Definition(module, name, text)
        elif defined is None:
            for statement in _flatten(_parse(text) or ()):
                binding = _bound_by(module, statement, name) or binding
    return binding


def read_star_imports(module: Module) -> list[str]:
    """Return the modules from which `module` imports everything."""
    return [
        _absolute(module, statement)
        for text, _ in _read_statements(module, "*")
        for statement in _flatten(_parse(text) or () if "import" in text else ())
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
    ]


def read_all(module: Module) -> tuple[str, ...] | None:
    """Return the ``__all__`` of `module`, or None where it has none or computes it."""
    names: list[str] | None = None
    for text, _ in _read_statements(module, "__all__"):
        for statement in _parse(text) or ():
            if not isinstance(statement, (ast.Assign, ast.AugAssign)):
                continue
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if not (isinstance(target, ast.Name) and target.id == "__all__"):
                continue
            try:
                listed = ast.literal_eval(statement.value)
            except (ValueError, TypeError, SyntaxError):
                return None
            names = [*(names or []), *(name for name in listed if isinstance(name, str))]
    return None if names is None else tuple(names)


def read_public_names(module: Module) -> list[str]:
    """Return the names that `module` defines or imports by name, without those that start with an underscore."""
    names: list[str] = []
    for text, defined in _read_statements(module, None):
        if defined is not None:
            names.append(defined)
        elif text.startswith(("from", "if", "try")):
            for statement in _flatten(_parse(text) or ()):
                if isinstance(statement, ast.ImportFrom):
                    names.extend(alias.asname or alias.name for alias in statement.names)
    return [name for name in dict.fromkeys(names) if not name.startswith("_") and name != "*"]


def read_own_names(module: Module) -> tuple[str, ...]:
    """Return the public names that `module` itself defines or assigns, in order, without imports and constants."""
    names = []
    for text, defined in _read_statements(module, None):
        assigned = _ASSIGNMENT.match(text)
        names.append(defined or (assigned.group(1) if assigned else "_"))
    return tuple(name for name in dict.fromkeys(names) if not (name.startswith("_") or name.isupper()))


def read_late_doc(module: Module, name: str) -> str:
    """Return the text that `module` assigns to ``name.__doc__`` (torch's optimizers do), as far as it is literal."""
    for text, _ in _read_statements(module, name):
        for statement in _parse(text) or () if text.startswith(f"{name}.__doc__") else ():
            if isinstance(statement, ast.Assign):
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


def _bound_by(module: Module, statement: ast.stmt, name: str) -> Binding | None:
    if isinstance(statement, DefinitionNode) and statement.name == name:  # inside an if or try
        return Definition(module, name, ast.unparse(statement))
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return Value(statement.value)
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            if (alias.asname or alias.name) == name:
                return Import(_absolute(module, statement), alias.name)
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                return Import(alias.name if alias.asname else name, None)
    return None


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    base = module.package.split(".")
    base = base[: len(base) - (statement.level - 1)]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _read_statements(module: Module, mentioning: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield the text of top-level statements, and the name each defines if it is a class or function.

    Args:
        module: the file.
        mentioning: only definitions of this name, and other statements that mention it; None for all.
    """
    source, chunks = _read_chunks(module.file)
    for start, end, defined in chunks:
        if mentioning is None or (
            source.find(mentioning, start, end) >= 0 if defined is None else defined == mentioning
        ):
            yield source[start:end], defined


@lru_cache(maxsize=2048)
def _parse(text: str) -> tuple[ast.stmt, ...] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return tuple(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


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


Chunks = tuple[tuple[int, int, str | None], ...]


def _read_chunks(file: Path) -> tuple[str, Chunks]:
    try:
        stamp = file.stat()
    except OSError:
        return "", ()
    return _cut(str(file), stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=256)
def _cut(file: str, _modified: int, _size: int) -> tuple[str, Chunks]:
    """Return a file's text, and of each of its top-level statements the start, the end and what it defines."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(_MAX_SOURCE_BYTES)
    except OSError:
        return "", ()
    source = data.decode("utf-8", errors="replace").removeprefix("\ufeff").replace("\r\n", "\n")
    starts = [match.start() for match in _STATEMENT_START.finditer(source)]
    # Decorators belong to the definition that follows them.
    starts = [start for i, start in enumerate(starts) if i == 0 or source[starts[i - 1]] != "@"]
    chunks = []
    for start, end in zip(starts, [*starts[1:], len(source)]):
        decorated = source[start] == "@"
        match = _DEFINITION.search(source, start, end) if decorated else _DEFINITION.match(source, start, end)
        chunks.append((start, end, match.group(1) if match else None))
    return source, tuple(chunks)
