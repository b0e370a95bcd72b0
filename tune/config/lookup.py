"""From a dotted path to the class or function it names, by reading files: nothing is imported."""

from __future__ import annotations

import ast
import pkgutil
import sys
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

import tune
from tune.config.source import (
    Definition,
    Import,
    Module,
    Value,
    dotted_text,
    is_python,
    read_all,
    read_binding,
    read_public_names,
    read_star_imports,
)
from tune.config.trust import trusts_part_of

_MAX_HOPS = 20  # imports of imports; more is a circle


@dataclass(frozen=True)
class NotFound:
    """Why a dotted path leads to no class or function.

    Args:
        reason: "no-package" (the top package is not installed), "no-name" (nothing has that name), "module"
            (it is a module), "import" (it goes through another module's import), "attribute" (it is inside a
            class), "value" (neither class nor function), "invalid" (the file is no Python), or "unreadable" (it
            exists, but its source cannot be read: made at run time, or compiled).
        where: the module in which the search ended.
        part: the name that was looked for there.
    """

    reason: str
    where: str
    part: str


def find_definition(path: str) -> Definition | NotFound:
    """Follow dotted `path` to the class or function it names, through ``from ... import`` lines."""
    top, *parts = path.split(".")
    module = find_module(top)
    if module is None:
        return NotFound("no-package", top, top)
    if not parts:
        return NotFound("module", top, top)
    for part in parts[:-1]:
        below = _find_submodule(module, part)
        if below is None:
            return _dead_end(module, part)
        module = below
    return find_in_module(module, parts[-1])


def find_in_module(module: Module, name: str, hops: int = 0) -> Definition | NotFound:
    """Return the class or function that `name` is bound to in `module`, following imports, aliases and makers."""
    if hops > _MAX_HOPS:
        return _dead_end(module, name)
    binding = read_binding(module, name)
    if isinstance(binding, Definition):
        return binding
    if isinstance(binding, Value):  # NAME = OTHER is an alias
        return _follow_alias(module, name, binding.expression, hops)
    if isinstance(binding, Import):
        if binding.name is None:
            return NotFound("import", module.name, name)
        return _follow_import(module, binding, hops)
    for star in read_star_imports(module):
        source = find_module_at(star)
        if source is not None and _exports(source, name):
            found = find_in_module(source, name, hops + 1)
            if isinstance(found, Definition) or found.reason != "no-name":
                return found
    return _dead_end(module, name)


def resolve_expression(module: Module, expression: ast.expr) -> Definition | NotFound:
    """Return the class that an expression such as ``nn.Module`` or ``Base[T]`` means inside `module`."""
    if isinstance(expression, ast.Subscript):
        return resolve_expression(module, expression.value)
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        try:
            return resolve_expression(module, ast.parse(expression.value, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError):
            return NotFound("unreadable", module.name, "annotation")
    dotted = dotted_text(expression)
    if dotted is None:
        return NotFound("unreadable", module.name, "expression")
    first, *others = dotted.split(".")
    if not others:
        return find_in_module(module, first)
    binding = read_binding(module, first)
    if not isinstance(binding, Import):
        return NotFound("no-name", module.name, first)
    start = binding.module if binding.name is None else f"{binding.module}.{binding.name}"
    return find_definition(".".join([start, *others]))


def public_names(module: Module, hops: int = 0) -> tuple[str, ...]:
    """Return the names `module` offers, in order: its ``__all__``, else its definitions and imported names."""
    declared = read_all(module)
    if declared is not None:
        return declared
    names = read_public_names(module)
    for star in read_star_imports(module) if hops < _MAX_HOPS else []:
        source = find_module_at(star)
        if source is not None:
            names.extend(name for name in public_names(source, hops + 1) if not name.startswith("_"))
    return tuple(dict.fromkeys(names))


def find_module_at(path: str) -> Module | None:
    """Return the module at dotted `path`, or None when there is none or it has no source."""
    top, *parts = path.split(".")
    module = find_module(top)
    for part in parts:
        module = None if module is None else _find_submodule(module, part)
    return module


def list_submodules(module: Module) -> list[str]:
    """Return the names of the public packages and modules directly inside the package `module`, sorted."""
    folders = [str(module.file.parent)] if module.is_package else []
    return sorted(found.name for found in pkgutil.iter_modules(folders) if not found.name.startswith("_"))


def find_module(name: str) -> Module | None:
    """Return the top-level module `name` without importing it, or None when it is not installed.

    The working directory is searched only for packages the user has trusted: a file called torch.py that came
    along with a config must not stand in for torch.
    """
    if name == "tune":
        return Module("tune", Path(tune.__file__), True)
    return _find_top_module(name, tuple(search_path(name)))


def search_path(name: str) -> list[str]:
    """Return the folders where the top-level module `name` may lie."""
    here = str(Path.cwd())
    # Python puts it on the path when started with -m or -c, and for an empty entry of PYTHONPATH.
    folders = [entry for entry in sys.path if entry and (entry != here or entry.endswith("-packages"))]
    return [*folders, here] if trusts_part_of(name) else folders


@lru_cache(maxsize=256)
def _find_top_module(name: str, path: tuple[str, ...]) -> Module | None:
    spec = PathFinder.find_spec(name, list(path))
    for finder in sys.meta_path if spec is None else ():
        # Editable installs answer through finders of their own.
        if getattr(finder, "__module__", "").startswith("__editable__"):
            spec = spec or finder.find_spec(name, None)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def _find_submodule(module: Module, name: str) -> Module | None:
    if not module.is_package:
        return None
    folder = module.file.parent
    for file, is_package in ((folder / name / "__init__.py", True), (folder / f"{name}.py", False)):
        if file.is_file():
            return Module(f"{module.name}.{name}", file, is_package)
    return None


def _follow_import(module: Module, binding: Import, hops: int) -> Definition | NotFound:
    assert binding.name is not None
    source = find_module_at(binding.module)
    if source is None:
        installed = find_module(binding.module.partition(".")[0]) is not None
        return NotFound("unreadable" if installed else "no-package", binding.module, binding.name)
    return find_in_module(source, binding.name, hops + 1)


def _follow_alias(module: Module, name: str, expression: ast.expr, hops: int) -> Definition | NotFound:
    found: Definition | NotFound | None = None
    if isinstance(expression, ast.Name):
        found = find_in_module(module, expression.id, hops + 1)
    elif isinstance(expression, ast.Attribute):
        found = resolve_expression(module, expression)
    elif isinstance(expression, ast.Call):
        found = _made_by(module, name, expression)
    return found if isinstance(found, Definition) else NotFound("value", module.name, name)


def _made_by(module: Module, name: str, call: ast.Call) -> Definition | None:
    """Return what ``name = maker(...)`` defines, as a function: the ``__call__`` of the class that `maker` is, or is
    annotated to return."""
    made = resolve_expression(module, call.func)
    if isinstance(made, Definition) and not made.is_class:
        returned = getattr(made.node, "returns", None)
        if returned is None:
            return None
        made = resolve_expression(made.module, returned)
    if not isinstance(made, Definition) or not isinstance(made.node, ast.ClassDef):
        return None
    for statement in made.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__call__":
            function = copy(statement)
            function.name, function.decorator_list = name, []
            function.args = deepcopy(statement.args)
            function.args.args = function.args.args[1:]  # without self
            _spell_out_wrapped(module, function.args, call)
            return Definition(made.module, name, function)
    return None


def _spell_out_wrapped(module: Module, arguments: ast.arguments, call: ast.Call) -> None:
    """Put the arguments of the function that `call` wraps in the place of ``*args: P.args, **kwargs: P.kwargs``."""
    annotation = arguments.kwarg.annotation if arguments.kwarg is not None else None
    if not (isinstance(annotation, ast.Attribute) and annotation.attr == "kwargs" and call.args):
        return
    wrapped = resolve_expression(module, call.args[0])
    if not isinstance(wrapped, Definition) or not isinstance(wrapped.node, ast.FunctionDef):
        return
    theirs = wrapped.node.args
    required = [None] * (len(theirs.args) - len(theirs.defaults))
    arguments.kwonlyargs += [*theirs.args, *theirs.kwonlyargs]
    arguments.kw_defaults += [*required, *theirs.defaults, *theirs.kw_defaults]
    arguments.vararg, arguments.kwarg = theirs.vararg, theirs.kwarg


def _exports(module: Module, name: str) -> bool:
    declared = read_all(module)
    return not name.startswith("_") if declared is None else name in declared


def _dead_end(module: Module, part: str) -> NotFound:
    """Say why `part` leads nowhere inside `module`."""
    if not is_python(module):
        return NotFound("invalid", module.name, part)
    if _find_submodule(module, part) is not None:
        return NotFound("module", module.name, part)
    binding = read_binding(module, part)
    if isinstance(binding, Import):
        return NotFound("import", module.name, part)
    if isinstance(binding, Definition):
        return NotFound("attribute", module.name, part)
    if binding is not None:
        return NotFound("value", module.name, part)
    if read_binding(module, "__getattr__") is not None:
        return NotFound("unreadable", module.name, part)
    return NotFound("no-name", module.name, part)
