"""What a configuration resolved to: the params object, and of every value where it comes from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tune.config.check import Checked
from tune.config.diagnostics import Diagnostic, ordered, printable, render_all, to_json
from tune.config.dump import write_params
from tune.config.nodes import Node

T = TypeVar("T")

_RESOLUTION = "_resolution"


@dataclass
class Resolution(Generic[T]):
    """What a configuration resolved to.

    Args:
        params: the checked object; None if there are errors.
        errors: everything wrong, by position.
        warnings: what the user should know, by position.
        recipe: what the reserved key `recipe` says, if it is there.
        files: the lines of the files read, for messages.
        checked: the typed values and the places they came from, also of a configuration with errors.
    """

    params: T | None
    errors: list[Diagnostic]
    warnings: list[Diagnostic]
    recipe: str | None = None
    files: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    checked: Checked = field(default_factory=Checked, repr=False)

    @property
    def ok(self) -> bool:
        """Whether the configuration can be used."""
        return not self.errors

    @property
    def lacks_values(self) -> bool:
        """Whether something that is required is not there."""
        return any(error.code == "missing-required" for error in self.errors)

    @property
    def places(self) -> Mapping[str, Node]:
        """The node each set value came from, by dotted path."""
        return self.checked.places

    def dump(self) -> str:
        """The resolved configuration as YAML, with provenance comments; read back, it gives the same params."""
        if self.params is None:
            raise ValueError("a configuration with errors has no resolved form")
        return write_params(self.params, self.recipe, self.places)

    def report(self, color: bool = False) -> str:
        """All errors and warnings as text; "" if there are none."""
        found = ordered([*self.errors, *self.warnings])
        # What somebody did on purpose is told in a line, where nothing else is wrong.
        told = [item for item in found if self.ok and item.code == "dropped-arguments"]
        lines = [f"warning: {printable(item.message)}" for item in told]
        rest = [item for item in found if item not in told]
        return "\n".join([*lines, *([render_all(rest, self.files, color=color)] if rest else [])])

    def to_json(self) -> dict[str, Any]:
        """The result in the form of ``tune validate --json``."""
        return to_json(self.errors, self.warnings)


def resolution_of(params: object) -> Resolution[Any] | None:
    """Return where the values of `params` come from, or None if it was not made by `resolve`."""
    found: Resolution[Any] | None = getattr(params, _RESOLUTION, None)
    return found if found is not None and found.params is params else None


def remember(resolution: Resolution[Any]) -> None:
    """Let `resolution_of` find this one."""
    object.__setattr__(resolution.params, _RESOLUTION, resolution)


def dump_params(params: Any, recipe: str | None = None, drawn: Mapping[str, Any] | None = None) -> str:
    """A params object as YAML; where `resolve` made it, with the origin of every value.

    Args:
        params: a checked params object.
        recipe: name to put into the key `recipe`.
        drawn: values that the run itself chose where a field was null, such as its seed, by field: written in
            its place, so that the file repeats this very run.
    """
    resolution = resolution_of(params)
    recipe = recipe or (resolution.recipe if resolution else None)
    return write_params(params, recipe, resolution.places if resolution else None, drawn)


def log_config(recipe_name: str, params: Any, logger: logging.Logger | None = None) -> None:
    """Log every parameter of a run with its value and, where it is known, its origin.

    Args:
        recipe_name: the recipe that runs.
        params: its params object.
        logger: where to; None means the logger "tune".
    """
    target = logger if logger is not None else logging.getLogger("tune")
    target.info("Running %s with the resolved configuration:\n\n%s", recipe_name, dump_params(params))


_handed_over: tuple[Resolution[Any], list[str]] | None = None


@contextmanager
def handing_over(resolution: Resolution[Any] | None, arguments: Sequence[str]) -> Iterator[None]:
    """In here a recipe that reads `arguments` gets `resolution`, instead of resolving them once more."""
    global _handed_over
    if resolution is None:
        yield
        return
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
