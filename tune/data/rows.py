"""Rows of local files: one record of a dataset with the place it came from, or what is wrong with it.

A fault in one row (a broken line, bytes that are no UTF-8) is handed on with its place, so that the dataset
can list all faults at once; a fault in the file as a whole is raised.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from tune.data.columns import list_names
from tune.data.csv_rows import read_csv
from tune.data.files import (
    MAX_DOCUMENT_BYTES,
    MAX_ROW_BYTES,
    UTF8_BOM,
    DataFile,
    Row,
    check_decoded,
    check_size,
    decode,
)
from tune.data.json_text import JsonReader, excerpt, parse
from tune.data.tables import read_parquet
from tune.errors import DataError
from tune.utils.escape import escape_control

TextUnit = Literal["document", "paragraph", "line"]


def read_file(file: Path, json_field: str | None = None, text_unit: TextUnit = "document") -> Iterator[Row]:
    """Yield the rows of a json, jsonl, csv, tsv, parquet or txt file, .gz included.

    Args:
        file: its ending says what it is.
        json_field: for a .json file that is one object, the key that holds the rows; "a.b" goes deeper.
        text_unit: what is one row of a .txt file.

    Raises:
        DataError: the file is missing, empty, of another kind, or broken as a whole.
    """
    return (make() for make in read_unmade(file, json_field, text_unit))


def read_unmade(
    file: Path, json_field: str | None = None, text_unit: TextUnit = "document", start: int = 0
) -> Iterator[Callable[[], Row]]:
    """Yield for each row of a file what makes it: a line of JSON that is only counted, or passed over, is not parsed.

    Args and errors are those of `read_file`; the first row is the `start`-th, from 0.
    """
    kind, source = file_kind(file), DataFile(file)
    if kind is None:
        raise DataError(f"{source}: unknown kind of data file; known are {', '.join(KINDS)}")
    try:
        size = source.size()
        if size == 0:
            raise DataError(f"{source} is empty (0 bytes)")
        if kind == "jsonl" or (kind == "json" and json_field is None and _is_json_lines(source)):
            yield from _read_jsonl(source, start)
        elif kind == "parquet":
            yield from (row.itself for row in read_parquet(source, start))
        else:
            rows = (
                _read_json(source, json_field)
                if kind == "json"
                else _read_text(source, text_unit)
                if kind == "txt"
                else read_csv(source)
            )
            yield from (row.itself for row in islice(rows, start, None))
        check_size(source, size)
    except gzip.BadGzipFile as error:
        raise DataError(f"{source} ends in .gz but is not compressed with gzip: {error}") from error
    except zlib.error as error:
        raise DataError(f"{source} is damaged: {error}. Fetch or pack it again") from error
    except EOFError as error:
        raise DataError(f"{source} is cut short: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error


def file_kind(file: Path) -> str | None:
    """Return the kind that a file's ending names, None if it is no data file."""
    name = file.name.lower().removesuffix(".gz")
    kind = _ALIASES.get(name.rpartition(".")[2]) if "." in name else None
    return kind if kind != "parquet" or not file.name.lower().endswith(".gz") else None


def _read_jsonl(file: DataFile, start: int) -> Iterator[Callable[[], Row]]:
    num_rows: int | None = None
    for number, raw in file.lines(start):
        if num_rows is None:
            num_rows = number - 1  # lines before the first one were rows, all of them
        # Where files were put one after another, each may bring its mark.
        raw = raw.removeprefix(UTF8_BOM).rstrip(b"\r\n")
        if not raw.strip():
            continue
        num_rows += 1
        if num_rows > start:
            yield partial(_json_row, f"{file}:{number}", raw)
    if not num_rows and (num_rows == 0 or start == 0):  # none was passed over either
        raise DataError(f"{file} holds only blank lines")


def _json_row(place: str, raw: bytes) -> Row:
    text = ""
    try:
        text = decode(raw)
        value = parse(text)
    except json.JSONDecodeError as error:
        near = excerpt(text, error.pos)
        return Row(place, problem=f"broken JSON at column {error.colno}: {error.msg}{near}")
    except ValueError as error:
        return Row(place, problem=str(error))
    return _as_row(place, value)


def _as_row(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, problem=f"holds {describe(value)}, expected an object with named columns")


def _read_json(file: DataFile, json_field: str | None) -> Iterator[Row]:
    """Read an array of objects, or an object that holds one at `json_field`."""
    with JsonReader(file) as reader:
        if not reader.peek():
            raise DataError(f"{file} holds only blank lines")
        items = _json_items(file, reader, json_field.split(".") if json_field else [], json_field)
        for number, item in enumerate(items, start=1):
            yield _as_row(f"{file}, item {number}", item)
        reader.check_end()


def _is_json_lines(file: DataFile) -> bool:
    """Return whether the first line is an object by itself, and another follows."""
    with file.open() as stream:
        while (first := stream.readline(MAX_ROW_BYTES)) and not first.strip():
            pass
        if not first.lstrip().startswith(b"{") or len(first) >= MAX_ROW_BYTES:
            return False
        try:
            parse(first.decode("utf-8", errors="replace"))
        except ValueError:
            return False
        while (following := stream.readline(MAX_ROW_BYTES)) and not following.strip():
            pass
    return bool(following)


def _json_items(file: DataFile, reader: JsonReader, keys: list[str], json_field: str | None) -> Iterator[Any]:
    if not keys:
        yield from _json_rows(file, reader, json_field)
        return
    if reader.peek() != "{":
        found = describe(reader.value("its value"))
        raise DataError(f"{file} has no field {json_field!r}: {keys[0]!r} is not among {found}")
    names: list[str] = []
    is_there = False
    for name in reader.members():
        if name == keys[0] and not is_there:
            is_there = True
            yield from _json_items(file, reader, keys[1:], json_field)
        else:
            reader.skip_value(f"field {escape_control(name, 40)!r}")
        names = [*names[:10], name]
    if not is_there:
        raise DataError(
            f"{file} has no field {json_field!r}: {keys[0]!r} is not among {list_names(names, 10)}"
        )


def _json_rows(file: DataFile, reader: JsonReader, json_field: str | None) -> Iterator[Any]:
    if reader.peek() == "[":
        items = reader.items()
        if (first := next(items, None)) is None and reader.num_items == 0:
            raise DataError(f"{file} holds an empty list")
        yield from chain([first], items)
        return
    if reader.peek() != "{":
        found = reader.value(f"field {json_field!r}" if json_field else "its value")
        raise DataError(f"{file} holds {describe(found)}, expected a list of objects")
    value: dict[str, Any] = {}
    lists: list[str] = []
    for key in reader.members():
        if reader.peek() == "[" and not lists:
            lists.append(key)
        if lists:
            if key not in lists and reader.peek() == "[":
                lists.append(key)
            reader.skip_value("its one object")
        else:
            value[key] = reader.value("its one object")
    if lists:
        raise DataError(
            f"{file} is one object; say which of its fields holds the rows: "
            + " or ".join(f"dataset.field={escape_control(key, 60)}" for key in lists[:5])
        )
    yield value


def _read_text(file: DataFile, unit: TextUnit) -> Iterator[Row]:
    if unit == "document":
        yield Row(str(file), {"text": _read_document(file)})
        return
    is_blank = True
    for first, last, piece in _text_pieces(file, unit):
        is_blank = False
        yield Row(f"{file}:{first}" + (f"-{last}" if last > first else ""), {"text": piece})
    if is_blank:
        raise DataError(f"{file} holds only blank lines")


def _read_document(file: DataFile) -> str:
    with file.open() as stream:
        raw = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{file} ({file.size():,} bytes on the disk) is a text of more than {MAX_DOCUMENT_BYTES:,} bytes, the most "
            "that is read as one document. Set dataset.text_unit=paragraph or line, which are read one by one"
        )
    text = raw.decode("utf-8", errors="surrogateescape")
    check_decoded(file, text)
    text = text.replace("\r\n", "\n")
    if not text.strip():
        raise DataError(f"{file} holds only blank lines")
    return text


def _text_pieces(file: DataFile, unit: TextUnit) -> Iterator[tuple[int, int, str]]:
    """Yield paragraphs (between blank lines) or lines, with the numbers of their first and last line."""
    held: list[str] = []
    number = num_chars = 0
    with file.open_text() as stream:
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            check_decoded(file, line, number)
            line = line.rstrip("\r\n")
            if line.strip():
                held.append(line)
                num_chars += len(line)
            if num_chars > MAX_ROW_BYTES:
                raise file.row_too_long(f"{file}:{number}: this {unit}")
            if held and (unit == "line" or not line.strip()):
                last = number if line.strip() else number - 1
                yield last - len(held) + 1, last, "\n".join(held)
                held, num_chars = [], 0
    if held:
        yield number - len(held) + 1, number, "\n".join(held)


def describe(value: Any) -> str:
    """Return a value in words, shortened: "the number 7", "a list of 3"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        # A whole number of many thousand digits cannot be printed.
        return f"the number {value}" if isinstance(value, float) or abs(value) < 10**20 else "a large number"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, bytes):
        return f"{len(value):,} bytes of binary data"
    if isinstance(value, dict):
        return f"an object with {list_names(list(map(str, value)), 5) if value else 'no keys'}"
    if isinstance(value, Iterable):
        return f"a list of {len(list(value))}"
    return f"a {type(value).__name__}"


_ALIASES = {
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "txt": "txt",
    "text": "txt",
}
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", "and .gz of these")
