"""Rows of local files: one record of a dataset with the place it came from, or what is wrong with it.

A fault in one row (a broken line, bytes that are no UTF-8) is handed on with its place, so that the dataset
can list all faults at once; a fault in the file as a whole is raised.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tune.data.files import UTF8_BOM, Row, check_head, decode, open_file
from tune.errors import DataError

TextUnit = Literal["document", "paragraph", "line"]
_DELIMITERS = (",", ";", "\t", "|")


def read_file(file: Path, json_field: str | None = None, text_unit: TextUnit = "document") -> Iterator[Row]:
    """Yield the rows of a json, jsonl, csv, tsv, parquet or txt file, .gz included.

    Args:
        file: its ending says what it is.
        json_field: for a .json file that is one object, the key that holds the rows; "a.b" goes deeper.
        text_unit: what is one row of a .txt file.

    Raises:
        DataError: the file is missing, empty, of another kind, or broken as a whole.
    """
    kind = file_kind(file)
    if kind is None:
        raise DataError(f"{file}: unknown kind of data file; known are {', '.join(KINDS)}")
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty (0 bytes)")
        if kind == "json":
            yield from _read_json(file, json_field)
        elif kind == "txt":
            yield from _read_text(file, text_unit)
        else:
            yield from _READERS[kind](file)
    except gzip.BadGzipFile as error:
        raise DataError(f"{file} ends in .gz but is not compressed with gzip: {error}") from error
    except EOFError as error:
        raise DataError(f"{file} is cut short: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def file_kind(file: Path) -> str | None:
    """Return the kind that a file's ending names, None if it is no data file."""
    name = file.name.lower().removesuffix(".gz")
    kind = _ALIASES.get(name.rpartition(".")[2]) if "." in name else None
    return kind if kind != "parquet" or not file.name.lower().endswith(".gz") else None


def _parse(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError with line and column within the text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _read_jsonl(file: Path) -> Iterator[Row]:
    num_rows = 0
    with open_file(file) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                check_head(file, raw)
                raw = raw.removeprefix(UTF8_BOM)
            if not raw.strip():
                continue
            num_rows += 1
            yield _json_row(f"{file}:{number}", raw.rstrip(b"\r\n"))
    if num_rows == 0:
        raise DataError(f"{file} holds only blank lines")


def _json_row(place: str, raw: bytes) -> Row:
    try:
        value = _parse(decode(raw))
    except json.JSONDecodeError as error:
        return Row(
            place, problem=f"broken JSON at column {error.colno}: {error.msg}{_excerpt(raw, error.pos)}"
        )
    except ValueError as error:
        return Row(place, problem=str(error))
    return _as_row(place, value)


def _as_row(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, problem=f"holds {describe(value)}, expected an object with named columns")


def _excerpt(raw: bytes, position: int) -> str:
    text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
    around = text[max(0, position - 20) : position + 20]
    return f", near {around!r}" if around else ""


def _read_json(file: Path, json_field: str | None) -> Iterator[Row]:
    """Read an array of objects, an object that holds one at `json_field`, or JSON lines in a .json file."""
    with open_file(file) as stream:
        content = stream.read()
    check_head(file, content[:200])
    content = content.removeprefix(UTF8_BOM)
    if not content.strip():
        raise DataError(f"{file} holds only blank lines")
    if json_field is None and _is_json_lines(content):
        yield from _read_jsonl(file)
        return
    try:
        value = _parse(decode(content))
    except json.JSONDecodeError as error:
        at = f"{file}:{error.lineno}:{error.colno}"
        raise DataError(f"{at}: broken JSON: {error.msg}{_excerpt(content, error.pos)}") from error
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    for number, item in enumerate(_json_items(file, value, json_field), start=1):
        yield _as_row(f"{file}, item {number}", item)


def _is_json_lines(content: bytes) -> bool:
    first, _, rest = content.lstrip().partition(b"\n")
    if not first.startswith(b"{"):
        return False
    try:
        _parse(first.decode("utf-8", errors="replace"))
    except ValueError:
        return False
    return bool(rest.strip())


def _json_items(file: Path, value: Any, json_field: str | None) -> list[Any]:
    for key in json_field.split(".") if json_field else ():
        if not isinstance(value, dict) or key not in value:
            keys = ", ".join(list(value)[:10]) if isinstance(value, dict) else describe(value)
            raise DataError(f"{file} has no field {json_field!r}: {key!r} is not among {keys}")
        value = value[key]
    if isinstance(value, list):
        if not value:
            raise DataError(f"{file} holds an empty list")
        return value
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if lists:
            raise DataError(
                f"{file} is one object; say which of its fields holds the rows: "
                + " or ".join(f"dataset.field={key}" for key in lists[:5])
            )
        return [value]
    raise DataError(f"{file} holds {describe(value)}, expected a list of objects")


def _read_csv(file: Path) -> Iterator[Row]:
    lines = _CsvLines(file)
    header_line = next(iter(lines), "")
    delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([header_line], delimiter=mark), [])))
    # Without a limit of ours the csv module refuses fields above 128 KiB.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines.from_start(header_line), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(file, header)
        line, num_rows = reader.line_num + 1, 0
        for cells in reader:
            place, line = f"{file}:{line}", reader.line_num + 1
            if not cells:
                continue
            num_rows += 1
            if len(cells) == len(header):
                yield Row(place, dict(zip(header, cells)))
            else:
                problem = f"has {len(cells)} cells, the header has {len(header)} ({', '.join(header)})"
                yield Row(place, problem=problem)
    except csv.Error as error:
        raise DataError(f"{file}:{max(reader.line_num, 1)}: broken CSV: {error}; check the quotes") from error
    if num_rows == 0:
        raise DataError(f"{file} has a header ({', '.join(header)}) but no rows")


class _CsvLines:
    """Lines of a CSV file as text, so that an error of encoding has a line number."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def from_start(self, first: str) -> Iterator[str]:
        yield first
        yield from self._lines

    def _read(self) -> Iterator[str]:
        with open_file(self._file) as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1:
                    check_head(self._file, raw)
                    raw = raw.removeprefix(UTF8_BOM)
                try:
                    yield decode(raw)
                except ValueError as error:
                    raise DataError(f"{self._file}:{number}: {error}") from error


def _check_header(file: Path, header: list[str]) -> None:
    if not any(header):
        raise DataError(f"{file}:1: the first line must name the columns, and it is blank")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: column {twice[0]!r} stands twice in the header ({', '.join(header)})")


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        if table.metadata.num_rows == 0:
            raise DataError(f"{file} has 0 rows (columns: {', '.join(table.schema_arrow.names)})")
        number = 0
        for batch in table.iter_batches(batch_size=1000):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{file}, row {number}", values)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error


def _read_text(file: Path, unit: TextUnit) -> Iterator[Row]:
    with open_file(file) as stream:
        content = stream.read()
    check_head(file, content[:200])
    content = content.removeprefix(UTF8_BOM)
    try:
        text = decode(content).replace("\r\n", "\n")
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    if not text.strip():
        raise DataError(f"{file} holds only blank lines")
    if unit == "document":
        yield Row(str(file), {"text": text})
        return
    for first, last, piece in _text_pieces(text, unit):
        yield Row(f"{file}:{first}" + (f"-{last}" if last > first else ""), {"text": piece})


def _text_pieces(text: str, unit: TextUnit) -> Iterator[tuple[int, int, str]]:
    """Yield paragraphs (between blank lines) or lines, with the numbers of their first and last line."""
    held: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            held.append(line)
        if held and (unit == "line" or not line.strip()):
            last = number if line.strip() else number - 1
            yield last - len(held) + 1, last, "\n".join(held)
            held = []


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
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:5])) or 'no keys'}"
    if isinstance(value, Iterable):
        return f"a list of {len(list(value))}"
    return f"a {type(value).__name__}"


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
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
