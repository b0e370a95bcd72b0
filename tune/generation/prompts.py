"""Prompts as people hand them over: a file of lines, or of JSON objects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.errors import DataError
from tune.utils.paths import expand_path

__all__ = ["Prompt", "read_prompts"]

COLUMN = "prompt"


@dataclass(frozen=True)
class Prompt:
    """One prompt and what else stood beside it.

    Args:
        text: The prompt.
        source: The other columns of its JSON object, to be handed on with the answer.
    """

    text: str
    source: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Return the prompts of a file: ``.jsonl`` holds an object with a ``prompt`` a line, others a prompt a line.

    Lines of only white space are skipped. A byte order mark and Windows line ends are taken off.

    Raises:
        DataError: The file cannot be read, is not UTF-8, a line is not as expected, or there is no prompt in it.
    """
    file = expand_path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the prompts in {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8. Save the file as UTF-8."
        ) from error
    is_json = file.suffix.lower() in (".jsonl", ".ndjson")
    # Not splitlines(): it would also cut at the form feeds and line separators inside a prompt.
    lines = [
        (number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not lines:
        raise DataError(f"{file} holds no prompt: every line is empty.")
    return [
        _read_object(line, f"{file}, line {number}") if is_json else Prompt(line) for number, line in lines
    ]


def _read_object(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(f"{where}: not JSON ({reason}). A .jsonl file holds one object a line.") from error
    if isinstance(row, str):
        return Prompt(row)
    if not isinstance(row, dict):
        raise DataError(
            f'{where}: expected an object such as {{"{COLUMN}": "..."}}, found {type(row).__name__}.'
        )
    if COLUMN not in row:
        raise DataError(
            f"{where}: there is no column {COLUMN!r}; it has {', '.join(map(repr, row)) or 'none'}."
        )
    if not isinstance(row[COLUMN], str):
        raise DataError(f"{where}: column {COLUMN!r} is {type(row[COLUMN]).__name__}; it must be text.")
    return Prompt(row[COLUMN], {key: value for key, value in row.items() if key != COLUMN})
