"""What decides about the tokens of a data set, as a short text: of the same text come the same tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import unicodedata
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import tune
from tune.tokenizers.base import BaseTokenizer
from tune.tokenizers.chat_template_render import ChatTemplate

# What makes tokens of rows: a change in any of it may change tokens.
_ROOMS = ("tokenizers", "data", "datasets")
_LIBRARIES = ("tokenizers", "sentencepiece", "tiktoken", "jinja2", "pyarrow", "datasets")


class NotDescribedError(Exception):
    """A value, such as code of somebody's own, cannot be told from others by a text."""


def cache_key(**parts: Any) -> str:
    """Return a text of 40 hexadecimal digits that is another where any part, or the code that makes tokens, is.

    Args:
        **parts: plain values, and objects of this package: tokenizers, templates, transforms.

    Raises:
        NotDescribedError: one is neither.
    """
    described = {name: describe(value) for name, value in parts.items()}
    text = json.dumps([_code(), described], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def describe(value: Any) -> Any:
    """Return a value as JSON holds it, equal where the values do the same. Raises NotDescribedError where none is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {"": sorted([[describe(key), describe(item)] for key, item in value.items()], key=json.dumps)}
    if isinstance(value, set | frozenset):
        return sorted((describe(item) for item in value), key=json.dumps)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseTokenizer) and _is_ours(type(value)):
        return [type(value).__qualname__, value.fingerprint()]
    if isinstance(value, ChatTemplate):
        today = str(date.today()) if "strftime_now" in value.source + (value.for_tools or "") else ""
        return [value.name, value.source, value.for_tools, list(value.needs), value.is_builtin, today]
    if not _is_ours(type(value)):
        raise NotDescribedError(f"{type(value).__module__}.{type(value).__qualname__} is code of its own")
    if dataclasses.is_dataclass(value):
        content = {name.name: getattr(value, name.name) for name in dataclasses.fields(value)}
    else:
        content = vars(value)
    return [type(value).__module__, type(value).__qualname__, describe(content)]


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("tune.")


@cache
def _code() -> str:
    """Return what changes when the code that makes tokens does, or a library that it uses."""
    digest = hashlib.sha256(f"{sys.version_info} {unicodedata.unidata_version}".encode())
    root = Path(tune.__file__).parent
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*")):
            if file.suffix in (".py", ".jinja", ".json", ".toml") and file.is_file():
                digest.update(f"{file.relative_to(root).as_posix()}|".encode() + file.read_bytes())
    for library in _LIBRARIES:
        try:
            digest.update(f"{library} {metadata.version(library)}|".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{library} none|".encode())
    return digest.hexdigest()
