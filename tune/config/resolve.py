"""From a file and a command line to a checked params object, with every problem and every value's origin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from tune.config.check import RECIPE_KEY, Checked, check_tree, cross_check, find_place
from tune.config.convert import REFUSED, shadowed, show
from tune.config.diagnostics import (
    Diagnostic,
    Source,
    ordered,
    problem,
    quote,
    render_all,
    to_json,
)
from tune.config.document import Document, read_document
from tune.config.merging import apply_edits
from tune.config.nodes import MappingNode, Node, Scalar, is_null, plain_value, without_entry
from tune.config.overrides import parse_overrides
from tune.config.params import ParamInfo, ParamsError, building_from_checked_values, fields_of
from tune.config.reading import Text, clean, read_file
from tune.config.references import resolve_references
from tune.config.short_forms import expand_short_forms
from tune.config.torchtune_compat import expand_torchtune_forms
from tune.errors import TuneError

T = TypeVar("T")

_MAX_REMEMBERED = 32
_MAX_ERRORS = 200


@dataclass(frozen=True)
class ResolvedValue:
    """One value of a resolved configuration, and where it comes from."""

    value: Any
    source: Source
    shadows: str | None = None


@dataclass
class Resolution(Generic[T]):
    """What a configuration resolved to.

    Args:
        params: the checked object; None if there are errors.
        errors: everything wrong, by position.
        warnings: what the user should know, by position.
        recipe: what the reserved key `recipe` says, if it is there.
        places: the node each set value came from, by dotted path.
        files: the lines of the files read, for messages.
        checked: the typed values, also of a configuration with errors.
    """

    params: T | None
    errors: list[Diagnostic]
    warnings: list[Diagnostic]
    recipe: str | None = None
    places: Mapping[str, Node] = field(default_factory=dict, repr=False)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    checked: Checked = field(default_factory=Checked, repr=False)

    @property
    def ok(self) -> bool:
        """Whether the configuration can be used."""
        return not self.errors

    @property
    def values(self) -> dict[str, ResolvedValue]:
        """Every value by its dotted path ("optimizer.lr"), with its origin; components are taken apart."""
        from tune.config.dump import flatten

        return flatten(self)

    def dump(self) -> str:
        """The resolved configuration as YAML, with provenance comments; read back, it gives the same params."""
        from tune.config.dump import dump_resolution

        return dump_resolution(self)

    def report(self, color: bool = False) -> str:
        """All errors and warnings as text; "" if there are none."""
        return render_all(ordered([*self.errors, *self.warnings]), self.files, color=color)

    def to_json(self) -> dict[str, Any]:
        """The result in the form of ``tune validate --json``."""
        return to_json(self.errors, self.warnings)


_remembered: dict[int, Resolution[Any]] = {}


def resolution_of(params: object) -> Resolution[Any] | None:
    """Return where the values of `params` come from, or None if it was not made by `resolve`."""
    found = _remembered.get(id(params))
    return found if found is not None and found.params is params else None


def _remember(resolution: Resolution[Any]) -> None:
    while len(_remembered) >= _MAX_REMEMBERED:
        del _remembered[next(iter(_remembered))]
    _remembered[id(resolution.params)] = resolution


_handed_over: tuple[Resolution[Any], list[str]] | None = None


@contextmanager
def handing_over(resolution: Resolution[Any] | None, arguments: Sequence[str]) -> Iterator[None]:
    """In here a recipe that reads `arguments` gets `resolution`, instead of resolving them once more."""
    global _handed_over
    if resolution is None:
        yield
        return
    _remember(resolution)
    _handed_over = resolution, list(arguments)
    try:
        yield
    finally:
        _handed_over = None


def handed_over(params_cls: type[T], arguments: Sequence[str]) -> Resolution[T] | None:
    """Return what `arguments` have been resolved to for a recipe with these params, or None."""
    if _handed_over is None or _handed_over[1] != list(arguments):
        return None
    resolution = _handed_over[0]
    return resolution if type(resolution.params) is params_cls else None


@dataclass
class LoadedTree:
    """File and command line merged, references resolved; nothing typed yet."""

    root: MappingNode
    document: Document | None
    problems: list[Diagnostic]
    files: dict[str, list[str]]
    whole: Source

    @property
    def complete(self) -> bool:
        return self.document is None or self.document.complete


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
    source: Text | None = None
    if text is not None:
        source = clean(text, name)
    elif config is not None:
        source = read_file(config)
    problems: list[Diagnostic] = []
    document = None
    files: dict[str, list[str]] = {}
    root = MappingNode(Source("cli"))
    whole = Source("cli")
    if source is not None:
        document = read_document(source)
        problems += document.problems
        files[source.name] = source.lines
        root = document.root
        whole = Source("file", source.name, 1, 1, length=0)
    edits, faults = parse_overrides(overrides, removals)
    problems += faults
    if document is not None and not document.readable:
        edits = []  # there is nothing that they could be judged against
    merged = apply_edits(root, edits, infos)
    problems += merged.problems
    root = resolve_references(merged.root, infos, problems.append)
    return LoadedTree(root, document, problems, files, whole)


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
    root = expand_short_forms(expand_torchtune_forms(root, infos, found.append), infos, found.append)
    checked = check_tree(root, infos, found.append, whole=tree.whole, complete=tree.complete)
    for item in cross_check(params_cls, checked, infos):
        # of a file that could not be read to its end nobody can say what it leaves out
        if tree.complete or all(find_place(name, checked, infos) for name in item.fields):
            found.append(_place(item, checked, infos, tree.whole))
    errors = _bounded(ordered(item for item in found if item.severity == "error"))
    warnings = ordered(item for item in found if item.severity == "warning")
    params = None
    if not errors:
        params, errors = _build(params_cls, checked, infos, tree.whole)
    resolution = Resolution(params, errors, warnings, stated, checked.places, tree.files, checked)
    if params is not None:
        _remember(resolution)
    return resolution


def _bounded(errors: list[Diagnostic]) -> list[Diagnostic]:
    """The first errors, and a last one that counts the rest: nobody reads thousands."""
    if len(errors) <= _MAX_ERRORS:
        return errors
    message = f"and {len(errors) - _MAX_ERRORS} more errors from here on"
    rest = Diagnostic("more-errors", "", message, errors[_MAX_ERRORS].source)
    return [*errors[:_MAX_ERRORS], rest]


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
            return dacite.from_dict(params_cls, values, setup), []
    except (TypeError, ValueError, TuneError) as error:
        problems = error.problems if isinstance(error, ParamsError) else ()
        found = problems or [problem(str(error) or type(error).__name__)]
        return None, ordered(_place(item, checked, infos, whole) for item in found)


def plain_tree(tree: LoadedTree) -> dict[str, Any]:
    """The values of a tree for which no parameters are declared, by YAML 1.2's core rules."""
    root = without_entry(tree.root, RECIPE_KEY)
    value = plain_value(root)
    return value if isinstance(value, dict) else {}
