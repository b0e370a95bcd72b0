"""JSON: one text's value, and a file's items one by one, however large the file is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from json import JSONDecodeError
from types import TracebackType
from typing import Any

from tune.data.files import MAX_ROW_BYTES, DataFile, check_decoded
from tune.errors import DataError
from tune.utils.escape import escape_control

# What reads a row later (templates, reports) calls itself for each level.
MAX_DEPTH = 200
_CHUNK = 1 << 20
# An error this close to the end of what was read may be one only because the rest is not read yet.
_CUT = 32
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_BLANKS = re.compile(f"[{_BLANK}]+")


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is broken (JSONDecodeError, with line and column), nested too deeply, or holds a number too long.
    """
    value, end = _decode_at(text, len(text) - len(text.lstrip(_BLANK)))
    if text[end:].strip(_BLANK):
        raise JSONDecodeError("Extra data", text, end)
    return value


def _decode_at(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(f"the JSON is nested too deeply, beyond {MAX_DEPTH} levels") from error
    except ValueError as error:  # Python's own advice is not for those who only have data
        limit = f"{sys.get_int_max_str_digits():,}"
        raise ValueError(
            f"a whole number has more digits than the limit of {limit}; write it as text"
        ) from error
    # Fewer brackets than levels need no look.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH:
        _check_depth(value)
    return value, end


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"the JSON is nested too deeply, beyond {MAX_DEPTH} levels")


def excerpt(text: str, position: int) -> str:
    """Return what follows an error's message: the text around it."""
    around = text[max(0, position - 20) : position + 20].rstrip("\r\n")
    return f", near {around!r}" if around else ""


class JsonReader:
    """The values of a JSON file, read as far as they are asked for.

    Attributes:
        num_items: items of the list read so far.
    """

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._stream = file.open_text()
        self._text = ""
        self._at = 0
        self._ended = False
        # Where the text that is held begins in the file.
        self._line, self._column = 1, 1
        self.num_items = 0

    def __enter__(self) -> JsonReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stream.close()

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while True:
            if blank := _BLANKS.match(self._text, self._at):
                self._at = blank.end()
            if self._at < len(self._text) or not self._read(_CHUNK):
                return self._text[self._at : self._at + 1]

    def skip(self, *marks: str) -> str:
        """Return the next character and go past it. Raises DataError if it is none of `marks`."""
        found = self.peek()
        if found not in marks or not found:
            wanted = " or ".join(repr(mark) for mark in marks)
            raise self._broken(f"Expecting {wanted}", self._at)
        self._at += 1
        return found

    def check_end(self) -> None:
        """Raise DataError where something follows."""
        if self.peek():
            raise self._broken("Extra data", self._at)

    def value(self, what: str) -> Any:
        """Return the next value, and go past it; errors call it `what`.

        Raises:
            DataError: it is broken, or takes more than a row may.
        """
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = _decode_at(self._text, self._at)
            except JSONDecodeError as error:
                cut = error.pos > len(self._text) - _CUT or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise self._broken(error.msg, error.pos) from error
            except ValueError as error:
                raise DataError(f"{self._file}, {what}: {error}") from error
            else:
                # A number that ends where the text does may go on: 1e-5 begins as 1 does.
                if end + _CUT < len(self._text) or self._ended:
                    if end - self._at > MAX_ROW_BYTES:
                        raise self._file.row_too_long(f"{self._file}, {what}")
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ROW_BYTES + _CUT:
                raise self._file.row_too_long(f"{self._file}, {what}")
            # No further than it takes to know that it is too long.
            self._read(min(size, MAX_ROW_BYTES + _CUT + 1 - (len(self._text) - self._at)))
            size *= 2

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller takes each one's value."""
        self.skip("{")
        if self.peek() == "}":
            self.skip("}")
            return
        while True:
            if self.peek() != '"':
                raise self._broken("Expecting property name enclosed in double quotes", self._at)
            key = self.value("a key")
            self.skip(":")
            yield str(key)
            if self.skip(",", "}") == "}":
                return

    def items(self) -> Iterator[Any]:
        """Yield the values of the list that begins here."""
        self.skip("[")
        if self.peek() == "]":
            self.skip("]")
            return
        while True:
            self.num_items += 1
            yield self.value(f"item {self.num_items}")
            if self.skip(",", "]") == "]":
                return

    def skip_value(self, what: str, depth: int = 3) -> None:
        """Go past the next value, of which nothing is kept: a list or an object may be of any size, but for its values.

        Raises:
            DataError: as `value`.
        """
        first, num_items = self.peek(), self.num_items
        if first == "[":
            for _ in self.items():
                pass
        elif first == "{" and depth:
            for _ in self.members():
                self.skip_value(what, depth - 1)
        else:
            self.value(what)
        self.num_items = num_items

    def _read(self, size: int) -> bool:
        """Read on, forgetting what is behind; return whether there was more."""
        more = self._stream.read(size)
        if not more:
            self._ended = True
            return False
        self._line, self._column = self._position(self._at)
        self._text, self._at = self._text[self._at :] + more, 0
        start = len(self._text) - len(more)
        check_decoded(self._file, more, *self._position(start))
        return True

    def _position(self, at: int) -> tuple[int, int]:
        newlines = self._text.count("\n", 0, at)
        if newlines:
            return self._line + newlines, at - self._text.rfind("\n", 0, at)
        return self._line, self._column + at

    def _broken(self, message: str, at: int) -> DataError:
        line, column = self._position(at)
        text = escape_control(excerpt(self._text, at))
        return DataError(f"{self._file}:{line}:{column}: broken JSON: {message}{text}")
