"""Rows of CSV files: commas, semicolons, tabs or bars, and line ends of any system."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tune.data.columns import list_names
from tune.data.files import MAX_ROW_BYTES, DataFile, Row, check_decoded
from tune.errors import DataError
from tune.utils.escape import escape_control

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_CHARS = 1 << 16
_MAX_COLUMNS = 10_000
# Stands for a carriage return by itself where lines end otherwise: no text that is decoded holds it.
_CR = "\udc0d"
_LONE_CR = re.compile(r"\r(?!\n)")


def read_csv(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a CSV file. Raises DataError where it is broken as a whole."""
    # Without a limit of ours the csv module refuses fields above 128 KiB; that of rows is kept by the lines.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES + 1))
    lines = _CsvLines(file)
    reader: Any = None
    try:
        header_line = next(iter(lines), "")
        reader = csv.reader(chain([header_line], lines), delimiter=_find_delimiter(header_line), strict=True)
        header = [name.replace(_CR, " ").strip() for name in next(reader, [])]
        _check_header(file, header)
        line, num_rows = reader.line_num + 1, 0
        lines.start_row()
        for cells in reader:
            place, line = f"{file}:{line}", reader.line_num + 1
            lines.start_row()
            if not cells:
                continue
            num_rows += 1
            for row in _rows_of_line(cells, len(header)):
                if len(row) == len(header):
                    yield Row(place, dict(zip(header, (cell.replace(_CR, "\r") for cell in row))))
                else:
                    problem = f"has {len(row)} cells, the header has {len(header)} ({list_names(header)})"
                    yield Row(place, problem=problem)
    except csv.Error as error:
        line = max(reader.line_num, 1) if reader else 1
        raise DataError(f"{file}:{line}: broken CSV: {error}; check the quotes") from error
    if num_rows == 0:
        raise DataError(f"{file} has a header ({list_names(header)}) but no rows")


def _rows_of_line(cells: list[str], num_columns: int) -> list[list[str]]:
    """Return the rows of a line: several where a lone carriage return ends rows in it, one where it is text."""
    if len(cells) == num_columns or not any(_CR in cell for cell in cells):
        return [cells]
    rows: list[list[str]] = [[]]
    for cell in cells:
        first, *others = cell.split(_CR)
        rows[-1].append(first)
        rows += [[other] for other in others]
    rows = [row for row in rows if row != [""]]
    return rows if all(len(row) == num_columns for row in rows) else [cells]


def _find_delimiter(header_line: str) -> str:
    """Return the mark that parts the header into the most columns."""
    start = header_line[:_SNIFFED_CHARS]
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([start], delimiter=mark), [])))


class _CsvLines:
    """Lines of a CSV file as text: an error of encoding has a line number, and no row takes more than it may."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._num_chars = 0
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def start_row(self) -> None:
        self._num_chars = 0

    def _read(self) -> Iterator[str]:
        with self._file.open_text() as stream:
            head = stream.readline(MAX_ROW_BYTES + 1)
        # Where lines end in a carriage return alone, that of the header does.
        newline = "" if head.endswith("\r") else "\n"
        with self._file.open_text(newline) as stream:
            number = 0
            while text := stream.readline(MAX_ROW_BYTES + 1):
                number += 1
                self._num_chars += len(text)
                if self._num_chars > MAX_ROW_BYTES:
                    what = f"{self._file}:{number}: the row that ends here or later (is a quote left open?)"
                    raise self._file.row_too_long(what)
                check_decoded(self._file, text, number)
                yield _LONE_CR.sub(_CR, text) if newline and "\r" in text else text


def _check_header(file: DataFile, header: list[str]) -> None:
    if not any(header):
        raise DataError(f"{file}:1: the first line must name the columns, and it is blank")
    if len(header) > _MAX_COLUMNS:
        raise DataError(
            f"{file}:1: the first line names {len(header):,} columns, at most {_MAX_COLUMNS:,} are read"
        )
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        shown = escape_control(name, 60)
        raise DataError(f"{file}:1: column '{shown}' stands twice in the header ({list_names(header)})")
