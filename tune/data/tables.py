"""Tables of Arrow and Parquet as rows: what a file unpacks to is known before it is unpacked.

A few hundred bytes may say a billion rows, or one value of gigabytes: dictionaries, runs and packed pages repeat for
free. So pages are looked at before they are read, and a batch of rows before it becomes Python objects.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from tune.data.arrow_values import restorer
from tune.data.columns import list_names
from tune.data.files import MAX_ROW_BYTES, MIB, DataFile, Row
from tune.data.parquet_pages import DICTIONARY_PAGE, read_pages
from tune.errors import DataError
from tune.utils.escape import escape_control

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 1000
# Rows that may all be as large as the largest value are read together up to this.
_BATCH_BYTES = 256 * MIB
# Writers fill a page with a thousand values before they look how large it is.
_MAX_PAGE_BYTES = 512 * MIB
# Values that a file of few bytes may have, and how many a byte beyond.
_FREE_VALUES, _VALUES_PER_BYTE = 10_000_000, 1000
# What a value takes in Python beyond its bytes, at least.
_VALUE_BYTES = 16


def read_parquet(file: DataFile, start: int = 0) -> Iterator[Row]:
    """Yield the rows of a Parquet file from the `start`-th on; groups of rows before it are not read.

    Raises DataError where it is broken, or unpacks to more than it may.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path, buffer_size=MIB) as table, file.path.open("rb") as raw:
            _check_columns(file, table.schema_arrow.names, table.metadata.num_rows)
            _check_num_values(file, table)
            number = 0
            for group in range(table.num_row_groups):
                if number + table.metadata.row_group(group).num_rows <= start:
                    number += table.metadata.row_group(group).num_rows
                    continue
                num_rows = _check_pages(file, table, group, raw)
                for batch in table.iter_batches(num_rows, row_groups=[group]):
                    passed = min(max(start - number, 0), batch.num_rows)
                    yield from table_rows(f"{file}, row", batch.slice(passed), number + passed)
                    number += batch.num_rows
    except (pyarrow.ArrowException, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as parquet: {escape_control(error, 400)}") from error
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as parquet: a page is damaged or encrypted ({error})"
        ) from error


def table_rows(place: str, batch: pyarrow.RecordBatch, start: int) -> Iterator[Row]:
    """Yield the rows of a batch, whose first is row `start` + 1 of what `place` begins to name.

    Raises:
        DataError: a row takes more memory than one may.
    """
    cost = sum(_cost(column) for column in batch.columns)
    if cost > MAX_ROW_BYTES:
        if batch.num_rows == 1:
            raise DataError(
                f"{place} {start + 1} takes {cost:,} bytes of memory, at most {MAX_ROW_BYTES:,} are read as one row; "
                "split it into several rows"
            )
        half = batch.num_rows // 2
        yield from table_rows(place, batch.slice(0, half), start)
        yield from table_rows(place, batch.slice(half), start + half)
        return
    restore = {
        field.name: restored for field in batch.schema if (restored := restorer(field.type)) is not None
    }
    try:
        rows = batch.to_pylist()
        for values in rows if restore else ():
            values.update({name: restored(values[name]) for name, restored in restore.items()})
        for number, values in enumerate(rows, start=start + 1):
            yield Row(f"{place} {number}", values)
    except _UNREADABLE as error:
        if batch.num_rows == 1:
            # A time before the year 1, text that is no UTF-8: this row's fault alone.
            yield Row(f"{place} {start + 1}", problem=f"cannot be read: {escape_control(error, 200)}")
            return
        for index in range(batch.num_rows):
            yield from table_rows(place, batch.slice(index, 1), start + index)


# What pyarrow raises for a value that Python has no object for; its own errors are kinds of these.
_UNREADABLE = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    OSError,
    ImportError,
    RecursionError,
)


def _cost(array: pyarrow.Array) -> int:
    """Return about how many bytes an array takes as Python objects, more rather than fewer."""
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if isinstance(array, pyarrow.ExtensionArray):
        return _cost(array.storage)
    if types.is_dictionary(kind):
        return len(array) * (_VALUE_BYTES + _largest(array.dictionary))
    if types.is_run_end_encoded(kind):
        return len(array) * (_VALUE_BYTES + _largest(array.values))
    cost = len(array) * _VALUE_BYTES
    if types.is_struct(kind):
        return cost + sum(_cost(part) for part in array.flatten())
    if types.is_map(kind):
        if not len(array):
            return cost
        # Keys and items are those of the whole array that this one is a slice of.
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return cost + _cost(array.keys[begin:end]) + _cost(array.items[begin:end])
    if types.is_nested(kind) and not types.is_union(kind):
        inside = compute.sum(compute.list_value_length(array)).as_py() or 0
        # No need to know what they are: and what a view repeats would be copied.
        return (
            cost + inside * _VALUE_BYTES
            if inside * _VALUE_BYTES > MAX_ROW_BYTES
            else cost + _cost(array.flatten())
        )
    return cost + int(array.nbytes)


def _largest(values: pyarrow.Array) -> int:
    """Return how many bytes the largest of some values takes, more rather than less."""
    from pyarrow import compute, types

    kind = values.type
    if types.is_large_string(kind) or types.is_string(kind) or types.is_binary(kind):
        return int(compute.max(compute.binary_length(values)).as_py() or 0)
    return 0 if types.is_primitive(kind) else _cost(values)


def _check_columns(file: DataFile, names: list[str], num_rows: int) -> None:
    if not names:
        raise DataError(f"{file} has no columns")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file}: column '{escape_control(name, 60)}' stands twice ({list_names(names)})")
    if num_rows == 0:
        raise DataError(f"{file} has 0 rows (columns: {list_names(names)})")


def check_num_rows(file: DataFile, num: int, what: str = "rows") -> None:
    """Raise DataError where a file says more rows, or other things, than its bytes can mean."""
    allowed = max(_FREE_VALUES, _VALUES_PER_BYTE * file.size())
    if num > allowed:
        raise DataError(
            f"{file} says that it holds {num:,} {what} in {file.size():,} bytes; at most {allowed:,} are read from a "
            "file of that size. If they are meant, they are all but the same: leave out the repetitions"
        )


def _check_num_values(file: DataFile, table: ParquetFile) -> None:
    meta = table.metadata
    check_num_rows(file, meta.num_rows)
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    for column in range(meta.num_columns):
        for group in groups:
            num, allowed = group.column(column).num_values, group.num_rows * (MAX_ROW_BYTES // _VALUE_BYTES)
            if num > allowed:  # Arrow takes hours for such a row
                raise DataError(
                    f"{file}: {group.num_rows:,} rows hold lists of {num:,} values, at most {allowed:,} are read; "
                    "split them into several rows"
                )
        check_num_rows(file, sum(group.column(column).num_values for group in groups), "values in a column")


def _check_pages(file: DataFile, table: ParquetFile, group: int, raw: BinaryIO) -> int:
    """Return how many rows of a group to read at once. Raises DataError where a page is too large to unpack."""
    repeated = 0
    for number in range(table.metadata.num_columns):
        chunk = table.metadata.row_group(group).column(number)
        repeats = "DELTA_BYTE_ARRAY" in chunk.encodings
        largest = 0
        for kind, size, num_values in read_pages(raw, chunk):
            allowed = min(_MAX_PAGE_BYTES, max(num_values, 1) * MAX_ROW_BYTES)
            if size > allowed:
                name = escape_control(chunk.path_in_schema, 60)
                raise DataError(
                    f"{file}: {num_values:,} values of column '{name}' unpack to {size:,} bytes at once, at most "
                    f"{allowed:,} are read ({MAX_ROW_BYTES:,} for one row). Split long texts into several rows, and "
                    "write smaller pages (data_page_size)"
                )
            if kind == DICTIONARY_PAGE or repeats:
                largest = max(largest, size)
        repeated += largest
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(repeated, 1)))
