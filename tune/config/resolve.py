"""From a file and a command line to a checked params object, with every problem and every value's origin."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tune.config.check import RECIPE_KEY, Checked, check_tree, cross_check, find_place, set_fields
from tune.config.convert import shadowed, show
from tune.config.diagnostics import (
    Diagnostic,
    Source,
    bounded,
    ordered,
    problem,
    quote,
)
from tune.config.fields import ParamInfo, fields_of, note_given
from tune.config.inheritance import without_inherited
from tune.config.merging import apply_edits
from tune.config.nodes import MappingNode, Scalar, is_null, plain_value, walk, without_entry, yaml_1_1_bool
from tune.config.overrides import parse_overrides
from tune.config.params import ParamsError, building_from_checked_values
from tune.config.places import check_places
from tune.config.reading import clean, read_file
from tune.config.references import resolve_references
from tune.config.resolution import Resolution, remember
from tune.config.scalars import REFUSED
from tune.config.yaml_tree import read_document
from tune.errors import TuneError

__all__ = ["LoadedTree", "Resolution", "load_tree", "plain_tree", "read_recipe_name", "resolve"]

T = TypeVar("T")


@dataclass
class LoadedTree:
    """File and command line merged, references resolved; nothing typed yet."""

    root: MappingNode
    problems: list[Diagnostic]
    files: dict[str, list[str]]
    whole: Source  # the place of the configuration as such
    complete: bool  # whether all of the file could be read


def load_tree(
    infos: Mapping[str, ParamInfo],
    *,
    config: str | os.PathLike[str] | None = None,
    text: str | None = None,
    name: str = "<config>",
    overrides: Sequence[str] = (),
    removals: Sequence[str] = (),
) -> LoadedTree:
    """Read a file (or text), apply the command line and resolve references.

    Args:
        infos: the declared parameters; empty where none are known.
        config: path of the file.
        text: the file's content instead of a path.
        name: what to call `text` in messages.
        overrides: `a.b=value` and `~a.b` arguments.
        removals: arguments of ``--remove``.
    """
    root, whole, complete = MappingNode(Source("cli")), Source("cli"), True
    files: dict[str, list[str]] = {}
    edits, problems = parse_overrides(overrides, removals)
    if text is not None or config is not None:
        source = read_file(config) if text is None and config is not None else clean(text or "", name)
        document = read_document(source)
        problems = [*document.problems, *problems]
        files[source.name] = source.lines
        root, complete = document.root, document.complete
        whole = Source("file", source.name, 1, 1, length=0)
        if not document.readable:
            edits = []  # there is nothing that they could be judged against
    root = apply_edits(root, edits, infos, problems.append)
    root = resolve_references(root, infos, problems.append)
    return LoadedTree(root, problems, files, whole, complete)


def resolve(
    params_cls: type[T],
    *,
    config: str | os.PathLike[str] | None = None,
    text: str | None = None,
    name: str = "<config>",
    overrides: Sequence[str] = (),
    removals: Sequence[str] = (),
    recipe: str | None = None,
    recipe_aliases: Iterable[str] = (),
) -> Resolution[T]:
    """Resolve a configuration: never raises for bad input, whatever it is.

    Args:
        params_cls: the params dataclass.
        config: path of the file, if there is one.
        text: the file's content instead of a path.
        name: what to call `text` in messages.
        overrides: `a.b=value` and `~a.b` arguments, in order.
        removals: arguments of ``--remove``.
        recipe: name of the recipe the configuration is used with; None to accept any.
        recipe_aliases: further names of that recipe.
    """
    infos = fields_of(params_cls)
    tree = load_tree(infos, config=config, text=text, name=name, overrides=overrides, removals=removals)
    found = tree.problems
    root = tree.root
    stated, fault = read_recipe_key(root)
    if fault is not None:
        found.append(fault)
    elif stated is not None and recipe is not None:
        found += _judge_recipe(stated, root, recipe, recipe_aliases)
    checked = check_tree(root, infos, found.append, whole=tree.whole, complete=tree.complete)
    for item in cross_check(params_cls, checked, infos):
        # of a file that could not be read to its end nobody can say what it leaves out
        if tree.complete or all(find_place(name, checked, infos) for name in item.fields):
            found.append(_place(item, checked, infos, tree.whole))
    found += check_places(checked.values, checked.places)
    found = without_inherited(found, infos)
    errors = bounded(ordered(item for item in found if item.severity == "error"))
    warnings = bounded(ordered(item for item in found if item.severity == "warning"))
    params = None
    if not errors:
        params, errors = _build(params_cls, checked, infos, tree.whole)
    resolution = Resolution(params, errors, warnings, stated, tree.files, checked)
    if params is not None:
        remember(resolution)
    return resolution


def read_recipe_name(root: MappingNode) -> str | None:
    """The recipe a tree says it is for; None where it does not say."""
    return read_recipe_key(root)[0]


def read_recipe_key(root: MappingNode) -> tuple[str | None, Diagnostic | None]:
    """The recipe a tree says it is for, or what is wrong with that key."""
    node = root.entries.get(RECIPE_KEY)
    if node is None or is_null(node):
        return None, None
    if isinstance(node, Scalar) and node.text.strip():
        return recipe_name(node.text.strip()), None
    message = f"recipe takes the name of a recipe, not {show(node)}"
    return None, Diagnostic("wrong-type", RECIPE_KEY, message, node.source)


def recipe_name(text: str) -> str:
    """A recipe's bare name: without folder and `.py`."""
    return os.path.basename(text.rstrip("/")).removesuffix(".py")


def _judge_recipe(stated: str, root: MappingNode, recipe: str, aliases: Iterable[str]) -> list[Diagnostic]:
    known = [recipe_name(recipe), *(recipe_name(alias) for alias in aliases)]
    if stated in known:
        return []
    node = root.entries[RECIPE_KEY]
    message = f"this configuration is for the recipe {quote(stated)}, not for {quote(known[0])}"
    return [Diagnostic("wrong-recipe", RECIPE_KEY, message, node.source, known[0], shadowed(node))]


def _place(item: Diagnostic, checked: Checked, infos: Mapping[str, ParamInfo], whole: Source) -> Diagnostic:
    for name in item.fields:
        node = find_place(name, checked, infos)
        if node is not None:
            return replace(item, source=node.source, shadows=shadowed(node))
    return replace(item, source=whole)


def _build(
    params_cls: type[T], checked: Checked, infos: Mapping[str, ParamInfo], whole: Source
) -> tuple[T | None, list[Diagnostic]]:
    """The params object; or what its own `__post_init__` has against it."""
    import dacite

    # every value has been checked against its declared type, and components stand in for what a slot builds
    setup = dacite.Config(check_types=False)
    values = {name: value for name, value in checked.values.items() if value is not REFUSED}
    try:
        with building_from_checked_values():
            params = dacite.from_dict(params_cls, values, setup)
    except (TypeError, ValueError, TuneError) as error:
        problems = error.problems if isinstance(error, ParamsError) else ()
        found = problems or [problem(str(error) or type(error).__name__)]
        return None, ordered(_place(item, checked, infos, whole) for item in found)
    note_given(params, set_fields(checked))
    return params, []


def plain_tree(tree: LoadedTree, declared: Collection[str] = ()) -> dict[str, Any]:
    """The values of a tree, by YAML 1.2's core rules; words that older YAML reads otherwise join its problems.

    Args:
        tree: the whole configuration.
        declared: keys that have a type, which decides what a word is there.
    """
    root = without_entry(tree.root, RECIPE_KEY)
    for key, node in root.entries.items():
        if key not in declared:
            found = (yaml_1_1_bool(inner, key) for inner in walk(node))
            tree.problems += [warning for warning in found if warning is not None]
    value = plain_value(root)
    return value if isinstance(value, dict) else {}
