"""What a command is about: a recipe by name, or the user's own file, and the params that it takes."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tune.cli.arguments import UsageError, nearest
from tune.cli.catalogue import RECIPES, Recipe, find_recipe, recipe_names
from tune.errors import TuneError, first_line

# Words in the names of torchtune's recipes for what tune does not do.
_NOT_HERE = {
    "ppo": "reinforcement learning",
    "grpo": "reinforcement learning",
    "qat": "quantisation-aware training",
    "early_exit": "early exit",
    "quantize": "quantising",
}


@dataclass(frozen=True)
class Target:
    """A recipe to run or to ask about.

    Args:
        file: the recipe's file.
        recipe: the built-in recipe it is, or whose params it takes; None for something of the user's own.
        params: its params dataclass; None where only running the file can tell.
        is_own: whether the file is the user's.
    """

    file: Path
    recipe: Recipe | None
    params: type | None
    is_own: bool

    @property
    def name(self) -> str:
        """The name to call it by in messages and command lines."""
        return str(self.file) if self.is_own or self.recipe is None else self.recipe.name

    @property
    def config_names(self) -> tuple[str, ...]:
        """What a config may say in its `recipe:` key to be one for this recipe."""
        names = [self.recipe.name, *self.recipe.aliases] if self.recipe is not None else []
        if self.is_own:
            names += [self.file.stem, self.file.name, str(self.file), f"./{self.file}"]
        return tuple(dict.fromkeys(names))


def find_target(name: str, *, importing: bool = False) -> Target:
    """Return the recipe that `name` means: a built-in one, or the user's own file.

    Args:
        name: as the user has typed it; never one that a config names.
        importing: import the file if it defines the params class itself. Otherwise only running it can tell.

    Raises:
        UsageError: there is no such recipe.
        TuneError: the file is no Python, cannot be imported, or would run if it were.
    """
    recipe = None if "/" in name or os.sep in name else find_recipe(name)
    # A file here beats a built-in name only when the name says that it is a file: full_finetune.py
    if recipe is not None and not (name.endswith(".py") and os.path.isfile(name)):
        return Target(recipe.file, recipe, recipe.load_params(), is_own=False)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        raise UsageError(f"{name} is a folder; a recipe is a .py file")
    if not os.path.isfile(path):
        raise UsageError(_no_such_recipe(name))
    if path.suffix != ".py":
        raise UsageError(f"{name} is not a recipe: recipes are .py files")
    return _own_target(path, importing)


def _no_such_recipe(name: str) -> str:
    bare = os.path.basename(name).removesuffix(".py")
    method = next((text for word, text in _NOT_HERE.items() if word in name), None)
    if method and bare == name:
        return f"there is no recipe {name!r}: tune has none for {method} yet; `tune ls` lists those it has"
    close = nearest(bare, recipe_names()) if bare else None
    hint = f"; did you mean {close}?" if close else "; `tune ls` lists them"
    if "/" in name or name.endswith(".py"):
        return f"there is no recipe {name}: no such file{hint}"
    return f"there is no recipe {name!r}{hint}"


def _own_target(file: Path, importing: bool) -> Target:
    """Read, without running it, which params the user's recipe takes."""
    dotpath = read_params_path(file)
    if dotpath is None or not (importing or "." in dotpath):
        return Target(file, None, None, is_own=True)
    add_to_path(file)
    recipe = next((recipe for recipe in RECIPES if recipe.params == dotpath), None)
    module, _, name = dotpath.rpartition(".")
    try:
        params = getattr(importlib.import_module(module) if module else _import_file(file), name)
    except (ImportError, AttributeError) as error:
        raise TuneError(
            f"{file} takes its params from {dotpath}, which cannot be imported: {error}"
        ) from error
    return Target(file, recipe, params if isinstance(params, type) else None, is_own=True)


def _import_file(file: Path) -> ModuleType:
    """Return the user's file as a module, as `import` would make it.

    Raises:
        UsageError: it cannot be imported, or would do its work if it were.
    """
    if _runs_when_imported(_parse(file)):
        raise UsageError(
            f"{file} would run if it were imported, to look at the params it defines: call its main function under "
            "if __name__ == '__main__'"
        )
    name = f"_recipe_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{file} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    return module


def _runs_when_imported(tree: ast.Module) -> bool:
    """Tell whether a file calls a function of its own outside of functions, classes and an `if __name__ ...`."""
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    unguarded = [
        node
        for node in tree.body
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
    ]
    return any(
        isinstance(call, ast.Call) and ast.unparse(call.func) in own
        for node in unguarded
        for call in ast.walk(node)
    )


def add_to_path(file: Path) -> None:
    """Let the user's recipe import what lies beside it, as `python FILE` does, but behind what is installed."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def read_params_path(file: Path) -> str | None:
    """Return the dotted path of the params class that a recipe's main function takes, or None.

    It is the function's annotation, or what `TuneArgumentParser(params=...)` is given. A class that the file itself
    defines has no path but its name.

    Raises:
        TuneError: the file is not valid Python, or cannot be read.
    """
    tree = _parse(file)
    found = [
        statement.args.args[0].annotation
        for statement in tree.body
        if isinstance(statement, ast.FunctionDef) and _is_main(statement) and statement.args.args
    ]
    found += [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("TuneArgumentParser")
        for keyword in node.keywords
        if keyword.arg == "params"
    ]
    annotation = next((node for node in found if node is not None), None)
    if annotation is None:
        return None
    text = ast.unparse(annotation).strip("'\"")
    if any(isinstance(statement, ast.ClassDef) and statement.name == text for statement in tree.body):
        return text
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for alias in statement.names:
                if (alias.asname or alias.name) == text:
                    return f"{statement.module}.{alias.name}"
    return None


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: too deeply nested
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.args[0] if error.args else "it is nested too deeply"
        raise TuneError(f"{file}{where} is not valid Python: {reason}") from error
    except OSError as error:
        raise TuneError(f"{file} cannot be read: {error.strerror}") from error


def _is_main(function: ast.FunctionDef) -> bool:
    decorators = [ast.unparse(decorator).split(".")[-1] for decorator in function.decorator_list]
    return function.name == "recipe_main" or "parse" in decorators
