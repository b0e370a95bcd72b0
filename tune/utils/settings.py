"""Keyword arguments that several functions share, each declared once: its type, its default and what it is for.

    class RowSettings(TypedDict, total=False):
        limit: Annotated[int | None, Setting(None, "rows to read at most.")]

    @takes_settings(RowSettings)
    def chat_dataset(tokenizer, *, source: str, **settings: Unpack[RowSettings]): ...

The function is called as if it spelt them out, and `inspect.signature`, `help()` and the checks of configurations
(`tune.config.signatures`, which reads this form from the source) show it so. Inside, `settings` has all of them, those
not given at their defaults, and may be handed on as it is: `other_dataset(tokenizer, source=source, **settings)`.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """What is said about one setting beside its type.

    Args:
        default: its value where it is not given; a plain literal, which can be read from the source.
        help: what it is for, as an `Args:` section would have it.
    """

    default: Any
    help: str


def takes_settings(declared: type) -> Callable[[F], F]:
    """Return a decorator for functions that end in ``**settings: Unpack[declared]``.

    Args:
        declared: a TypedDict whose items are `Annotated` with a `Setting`.

    Raises:
        TypeError: of the decorated function, for a keyword that it does not know.
    """
    hints = typing.get_type_hints(declared, include_extras=True)
    settings: dict[str, Setting] = {name: hint.__metadata__[0] for name, hint in hints.items()}
    defaults = {name: setting.default for name, setting in settings.items()}

    def decorate(function: F) -> F:
        own = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        known = {parameter.name for parameter in own} | defaults.keys()

        @functools.wraps(function)
        def spelt_out(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs.keys() - known:
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
            return function(*args, **{**defaults, **kwargs})

        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name].__origin__
            )
            for name, default in defaults.items()
        ]
        signature = inspect.signature(function).replace(parameters=[*own, *added])
        spelt_out.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
        spelt_out.__doc__ = _with_settings(inspect.getdoc(function) or "", settings)
        return cast(F, spelt_out)

    return decorate


def _with_settings(doc: str, settings: dict[str, Setting]) -> str:
    """Return a docstring with the settings at the end of its `Args:`."""
    before, raises, after = doc.partition("\n\nRaises:")
    entries = [
        textwrap.fill(f"{name}: {setting.help}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, setting in settings.items()
    ]
    head = before if "\nArgs:\n" in before else f"{before}\n\nArgs:"
    return "\n".join([head, *entries]) + raises + after
