"""Configuration files that come with weights: every field is read, checked, or known to be harmless."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from tune.errors import CheckpointError
from tune.utils.json_errors import describe_json_error

T = TypeVar("T")
_MAX_BYTES = 16 * 2**20
_MAX_PROBLEMS = 40  # of one file, in one error
_MAX_SHOWN = 120  # characters of a name or a value
_LARGEST_INTEGER = 2**63 - 1
_LARGEST = sys.float_info.max  # whole numbers in JSON may be larger, and NaN is not below it


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or raise CheckpointError saying where it is broken."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes; a configuration or index has fewer"
            )
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {describe_json_error(error)}. Download or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, where an object {{...}} is expected")
    return content


class ConfigFields:
    """The fields of one configuration file, each to be accounted for before `finish` passes.

    A field that would change the numbers and is not understood must stop us: so whatever is neither asked for
    nor listed as harmless is a problem, unless its value is null.

    Args:
        content: the file's content.
        where: the file's name, for messages.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content = content
        self._where = where
        self._seen: set[str] = set()
        self._problems: list[str] = []

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; without a default the field is required."""
        value = self._take(name, default)
        if not _is_integer(value):
            return self._wrong(name, value, "a whole number", 1)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number; without a default the field is required."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            return self._wrong(name, value, "a number", 1.0)
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """Return a finite number, None where the file says null, and `default` where it is silent."""
        value = self._content.get(name, default)
        self._seen.add(name)
        return None if value is None else self.number(name, value)

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """Return a whole number, None where the file says null, and `default` where it is silent."""
        value = self._content.get(name, default)
        self._seen.add(name)
        return None if value is None else self.integer(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            return self._wrong(name, value, "true or false", False)
        return value

    def text(self, name: str, default: str) -> str:
        """Return text."""
        value = self._take(name, default)
        if not isinstance(value, str):
            return self._wrong(name, value, "text", default)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers; the field is required."""
        value = self._take(name, None)
        is_list = isinstance(value, list) and all(
            not isinstance(item, bool) and isinstance(item, int | float) and abs(item) <= _LARGEST
            for item in value
        )
        return tuple(map(float, value)) if is_list else self._wrong(name, value, "a list of numbers", (1.0,))

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers, empty where the field is absent or null."""
        value = self._take(name, [])
        is_list = isinstance(value, list) and all(map(_is_integer, value))
        return tuple(value) if is_list else self._wrong(name, value, "a list of whole numbers", ())

    def choices(self, name: str, length: int, *allowed: Any) -> tuple[Any, ...] | None:
        """Return a list of `length` or more entries, each one of `allowed`; None where it is absent or null."""
        value = self._take(name, None)
        if value is None:
            return None
        is_list = isinstance(value, list) and len(value) >= length
        if not is_list or not all(type(item) in map(type, allowed) and item in allowed for item in value):
            wanted = " or ".join(json.dumps(choice) for choice in allowed)
            return self._wrong(name, value, f"a list of {length} entries, each {wanted}", None)
        return tuple(value[:length])

    def has(self, name: str) -> bool:
        """Whether the field is there and not null; this does not account for it."""
        return self._content.get(name) is not None

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object; empty where the field is absent or null."""
        value = self._take(name, {})
        if not isinstance(value, dict):
            return self._wrong(name, value, "an object", {})
        return value

    def expect(self, name: str, *understood: Any, advice: str = "") -> None:
        """Note that only these values are understood; absent and null are as well. `advice`: why, or what to do."""
        self._seen.add(name)
        value = self._content.get(name)
        if value is not None and not any(
            value == known and type(value) is type(known) for known in understood
        ):
            allowed = " or ".join(json.dumps(known) for known in understood) or "null"
            self.problem(
                f"`{name}` is {_show(value)}, which is not supported: only {allowed} is"
                + (f" ({advice})" if advice else "")
            )

    def ignore(self, names: Iterable[str]) -> None:
        """Note that these fields do not change what the model computes."""
        self._seen.update(names)

    def problem(self, text: str) -> None:
        """Note a problem; `finish` raises."""
        self._problems.append(text)

    def note_in(self, outer: ConfigFields) -> None:
        """Note every problem of this object as one of the file around it."""
        try:
            self.finish()
        except CheckpointError as error:
            outer.problem(str(error).replace("\n  ", "\n    "))

    def finish(self) -> None:
        """Raise one CheckpointError with every problem, unless there is none."""
        for name in sorted(set(self._content) - self._seen):
            if self._content[name] is not None and len(self._problems) <= _MAX_PROBLEMS:
                self.problem(
                    f"`{name[:_MAX_SHOWN]}` is {_show(self._content[name])}, and this field is not known here; "
                    "if it does not change the model's numbers, remove it from the file"
                )
        if self._problems:
            shown = self._problems[:_MAX_PROBLEMS]
            more = ["... and more"] if len(self._problems) > _MAX_PROBLEMS else []
            raise CheckpointError(f"{self._where} cannot be followed:\n  " + "\n  ".join([*shown, *more]))

    def _take(self, name: str, default: Any) -> Any:
        self._seen.add(name)
        value = self._content.get(name)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, wanted: str, stand_in: T) -> T:
        if value is None:
            self.problem(f"`{name}` is missing; it must be {wanted}")
        else:
            self.problem(f"`{name}` is {_show(value)}; it must be {wanted}")
        return stand_in


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _is_integer(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) <= _LARGEST_INTEGER
