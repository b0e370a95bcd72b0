"""Paths in a configuration: what they mean here, and whether a file may make a run write there.

A configuration may come from a stranger. What its file names for writing lies in the run's own folder; the person at
the command line may name any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tune
from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, quote
from tune.config.nodes import Node
from tune.config.scalars import REFUSED
from tune.errors import ConfigError
from tune.utils.paths import BUNDLED_PREFIX, expand_path, get_recipes_dir

OUTPUT_DIR = "output_dir"
_CACHE_DIR = "data_cache_dir"
_NO_CACHE = "off"
_WRITTEN = (OUTPUT_DIR, "log_dir", "output_file", _CACHE_DIR)
_READ = ("checkpoint_dir", "path", "source", "data_files", "adapter_checkpoint", "prompt_file")
_READ_SELDOM = ("merges_file", "vocab_path", "recipe_checkpoint")
_PATHS = frozenset((*_WRITTEN, *_READ, *_READ_SELDOM))
_LOGGERS = "tune.training.metric_logging."
_CHECKPOINTERS = (
    "tune.training."  # they write where the recipe does, whatever their argument of older configs says
)


def check_places(values: Mapping[str, Any], places: Mapping[str, Node]) -> Iterator[Diagnostic]:
    """Yield the paths that mean nothing, and those that a file must not choose for writing.

    Args:
        values: the typed values of all fields.
        places: the node that each value came from, by dotted path.
    """
    home = _home_of(values)
    for path, value, owner in _texts(values):
        name = next(part for part in reversed(path.split(".")) if not part.isdecimal())
        node = places.get(path) or places.get(path.rpartition(".")[0])
        if node is None or not isinstance(value, str):
            continue
        if name == "filename" and owner.startswith(_LOGGERS):
            if value in ("", ".", "..") or set("/\\") & set(value):
                message = f"{path} takes a bare name, of a file in its log_dir, not {quote(value)}"
                yield Diagnostic("bad-path", path, message, node.source)
            continue
        if name not in _PATHS:
            continue
        where = node.written or path
        try:
            place = expand_path(value)
        except ConfigError as error:
            yield Diagnostic("bad-path", where, f"{where}: {error}", node.source)
            continue
        if name in _WRITTEN and value and (name, value) != (_CACHE_DIR, _NO_CACHE):
            fault = _judge_written(place, value, path, owner, node, home)
            if fault is not None:
                yield fault


def _judge_written(
    place: Path, value: str, path: str, owner: str, node: Node, home: Path | None
) -> Diagnostic | None:
    """Return why nothing can be written at `place`, or nothing that a file asks for; None where it can."""
    name = path.rpartition(".")[2]
    is_in_file = node.source.kind == "file"
    place = _absolute(place)
    installed = get_recipes_dir(), Path(tune.__file__).resolve().parent
    if owner.startswith(_CHECKPOINTERS) and owner.endswith("Checkpointer"):
        return None
    if value.startswith(BUNDLED_PREFIX) or any(_lies_in(place, part) for part in installed):
        message = (
            f"{path} lies in the files that came with tune, where nothing is written; choose another folder"
        )
        return Diagnostic("bad-path", path, message, node.source)
    if path == OUTPUT_DIR:
        if place == Path(place.anchor):
            message = "output_dir is the root of the file system; choose a folder for this run"
            return Diagnostic("bad-path", path, message, node.source)
        if is_in_file and _lies_in(_absolute(Path(os.path.expanduser("~"))), place):
            message = f"output_dir is {place}, which holds your home; choose a folder for this run"
            return Diagnostic("writes-outside", path, message, node.source)
        return None
    if not is_in_file or home is None or _lies_in(place, home):
        return None
    if home == _absolute(Path()) and name == "output_file":
        message = (
            f"{path} lies outside the working directory: a file of a config may not choose to write there"
        )
    else:
        message = f"{path} lies outside output_dir: a file of a config may not choose to write there"
    # An override may say anything: whoever types it knows where it leads.
    folder = "data_cache" if name == _CACHE_DIR else "profiler" if "profiler" in path else "logs"
    suggestion = None if name == "output_file" else f"${{output_dir}}/{folder}"
    return Diagnostic(
        "writes-outside", path, f"{message}; name it on the command line", node.source, suggestion
    )


def _home_of(values: Mapping[str, Any]) -> Path | None:
    """Return the folder that a run writes to; None where it is not known."""
    if OUTPUT_DIR not in values:
        return _absolute(Path())
    chosen = values[OUTPUT_DIR]
    if chosen is REFUSED or not isinstance(chosen, str) or not chosen:
        return None
    try:
        return _absolute(expand_path(chosen))
    except ConfigError:
        return None


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield every single value with its dotted path and the component it is an argument of, if it is of one."""
    pending: list[tuple[str, Any, str]] = [(name, value, "") for name, value in values.items()]
    while pending:
        path, value, owner = pending.pop()
        if isinstance(value, Component):
            pending += [(f"{path}.{key}", item, value.path) for key, item in value.kwargs.items()]
        elif isinstance(value, Mapping):
            pending += [(f"{path}.{key}", item, owner) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(f"{path}.{index}", item, owner) for index, item in enumerate(value)]
        else:
            yield path, value, owner


def _absolute(place: Path) -> Path:
    return Path(os.path.abspath(place))


def _lies_in(place: Path, folder: Path) -> bool:
    return place == folder or folder in place.parents
