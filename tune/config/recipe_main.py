"""`parse`: turns a recipe's main function into a program."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import traceback
import typing
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tune.config.diagnostics import problem
from tune.config.nodes import core_value
from tune.config.params import ParamsError
from tune.config.references import escape
from tune.config.run_result import read_result
from tune.errors import ConfigError, TuneError
from tune.utils.escape import escape_lines
from tune.utils.paths import expand_path
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
    gets the plain values as attributes. Called with an object, the function gets that object. Called with settings,
    `recipe_main({"lr": 1e-4, "dataset.source": "my.jsonl"}, config="my.yaml")`, or with a list of words as on the
    command line, these are checked and read as ever; a run that has a folder returns a `RunResult`, and what is
    wrong is raised.

    A `TuneError` that ends such a program is printed as one block, without a traceback, and becomes its exit code.
    """

    @functools.wraps(function)
    def main(*args: Any, **kwargs: Any) -> R:
        if len(args) == 1 and isinstance(args[0], dict | list | tuple) and not kwargs.keys() - {"config"}:
            return _call(function, args[0], kwargs.get("config"))  # type: ignore[no-any-return]
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


def _call(function: Callable[[Any], R], settings: Any, config: str | os.PathLike[str] | None) -> Any:
    """Run a main function from Python, with settings by their names or the words of a command line.

    Raises:
        ConfigError: they are wrong.
    """
    words = (
        [f"{key}={_as_text(key, value)}" for key, value in settings.items()]
        if isinstance(settings, dict)
        else settings
    )
    words = [str(word) for word in words]
    words = words if config is None else ["--config", os.fspath(config), *words]
    params = _read_params(function, words)
    before = sys.argv
    sys.argv = [str(function.__globals__.get("__file__", before[0])), *words]  # as the run's record tells it
    try:
        code = function(params)
    finally:
        sys.argv = before
    output_dir = getattr(params, "output_dir", None)
    return read_result(expand_path(output_dir), code) if output_dir and isinstance(code, int) else code


def _as_text(key: str, value: Any) -> str:
    """Return a value from Python as the command line takes it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        # A text that would be read as null, or as a nest of values, is one all the same.
        is_plain = (
            value and value[0] not in "[{\"'" and value.strip() == value and core_value(value) is not None
        )
        return escape(value) if is_plain else json.dumps(escape(value))
    try:
        return json.dumps(_escaped(value), default=os.fspath)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is set to {value!r}, which no configuration can hold: {error}") from error


def _escaped(value: Any) -> Any:
    """Return a value whose texts are no references to other settings."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value


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


def _read_params(function: Callable[..., Any], words: Sequence[str] | None = None) -> Any:
    from tune.config.parser import TuneArgumentParser

    params_cls = params_class_of(function)
    doc = (params_cls or function).__doc__ or ""
    parser = TuneArgumentParser(description=doc.strip().split("\n")[0] or None, params=params_cls)
    if params_cls is not None:
        return parser.parse_params() if words is None else parser.read_params(words)
    values = parser.parse_args(words)
    return PlainParams(**{name: _attributes(value) for name, value in vars(values).items()})


def _attributes(value: Any) -> Any:
    if (
        isinstance(value, dict)
        and "_component_" not in value
        and all(str(key).isidentifier() for key in value)
    ):
        return PlainParams(**{str(key): _attributes(item) for key, item in value.items()})
    return value
