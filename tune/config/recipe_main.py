"""`parse`: turns a recipe's main function into a program."""

from __future__ import annotations

import functools
import re
import sys
import traceback
import typing
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TypeVar

from tune.config.diagnostics import problem
from tune.config.params import ParamsError
from tune.errors import TuneError
from tune.utils.escape import escape_lines
from tune.utils.streams import open_closed_streams

R = TypeVar("R")

_EXIT_INTERRUPTED = 130
_errors_are_for_caller = False


def leave_errors_to_caller() -> None:
    """Let programs made by `parse` end with the error itself from now on: of many ranks only one is to report it."""
    global _errors_are_for_caller
    _errors_are_for_caller = True


class PlainParams(Namespace):
    """Values of a configuration for which no dataclass is declared, as attributes; mappings nest.

    Components stay dictionaries, ready for `instantiate`.
    """

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


def parse(function: Callable[[Any], R]) -> Callable[..., R]:
    """Decorate a recipe's main function so that, called without arguments, it reads the command line.

    The annotation of its one parameter says what it gets: a params dataclass, frozen and checked. Without one it
    gets the plain values as attributes. Called with an object, the function gets that object.

    A `TuneError` that ends such a program is printed as one block, without a traceback, and becomes its exit code.
    """

    @functools.wraps(function)
    def main(*args: Any, **kwargs: Any) -> R:
        if args or kwargs:
            return function(*args, **kwargs)
        open_closed_streams()
        params = _read_params(function)
        if _errors_are_for_caller:
            return function(params)
        try:
            return function(params)
        except TuneError as error:
            sys.stderr.write(f"error: {escape_lines(error)}\n")
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            raise SystemExit(_EXIT_INTERRUPTED) from None

    return main


def explain_params(error: TypeError) -> ParamsError | None:
    """Return what ended `MyParams(**vars(args))`, names that a dataclass does not take or lacks; None for all else."""
    text = re.match(
        r"\w+\.__init__\(\) (got an unexpected keyword argument|missing \d+ required)(.*)", str(error)
    )
    call = traceback.extract_tb(error.__traceback__)[-1:]
    if text is None or not call or "**vars(" not in (call[0].line or ""):
        return None
    is_missing = text[1].startswith("missing")
    fact, code = ("is required", "missing-required") if is_missing else ("is no parameter", "unknown-key")
    names = re.findall(r"'(\w+)'", text[2].partition("?")[0].partition(". Did")[0])
    return ParamsError([problem(fact, (name,), code) for name in names], str(error).partition(".")[0])


def params_class_of(function: Callable[..., Any]) -> type[Any] | None:
    """Return the dataclass that a main function's first parameter is annotated with, or None."""
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # annotations that only a type checker can see
        return None
    hints.pop("return", None)
    first = next(iter(hints.values()), None)
    return first if isinstance(first, type) and hasattr(first, "__dataclass_fields__") else None


def _read_params(function: Callable[..., Any]) -> Any:
    from tune.config.parser import TuneArgumentParser

    params_cls = params_class_of(function)
    doc = (params_cls or function).__doc__ or ""
    parser = TuneArgumentParser(description=doc.strip().split("\n")[0] or None, params=params_cls)
    if params_cls is not None:
        return parser.parse_params()
    values = parser.parse_args()
    return PlainParams(**{name: _attributes(value) for name, value in vars(values).items()})


def _attributes(value: Any) -> Any:
    if (
        isinstance(value, dict)
        and "_component_" not in value
        and all(str(key).isidentifier() for key in value)
    ):
        return PlainParams(**{str(key): _attributes(item) for key, item in value.items()})
    return value
