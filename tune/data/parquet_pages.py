"""The headers of a Parquet file's pages: what each page unpacks to, known before it is unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from tune.data.files import MIB

if TYPE_CHECKING:
    from pyarrow.parquet import ColumnChunkMetaData

_MAX_PAGE_HEADER = 16 * MIB
# github.com/apache/parquet-format, parquet.thrift: PageType, PageHeader
DICTIONARY_PAGE = 2
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_DETAILS = (5, 7, 8)  # of a page of data, of a dictionary, of a page of data in version 2
_NUM_VALUES = 1


def read_pages(raw: BinaryIO, chunk: ColumnChunkMetaData) -> Iterator[tuple[int, int, int]]:
    """Yield kind, unpacked size and number of values of each page of a column. Raises ValueError at a broken one."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end = at + chunk.total_compressed_size
    while at < end:
        header, length = _page_header(raw, at)
        num_values: Any
        details = next((header[key] for key in _DETAILS if key in header), None)
        num_values = details.get(_NUM_VALUES) if isinstance(details, dict) else 0
        sizes: tuple[Any, ...] = tuple(header.get(key) for key in (_TYPE, _UNCOMPRESSED, _COMPRESSED))
        kind, unpacked, packed = sizes
        if not all(isinstance(size, int) and size >= 0 for size in (kind, unpacked, packed, num_values)):
            raise ValueError(f"the page at byte {at:,} has no size")
        yield kind, unpacked, num_values
        at += length + packed


def _page_header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the page header at a place, and its length."""
    size = 1024
    while True:
        raw.seek(at)
        content = raw.read(size)
        try:
            return _read_struct(content, 0, 0)
        except IndexError:
            if len(content) < size or size >= _MAX_PAGE_HEADER:
                raise
        size *= 8


def _read_struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct in Thrift's compact protocol, by number, and where it ends."""
    # github.com/apache/thrift, doc/specs/thrift-compact-protocol.md
    if depth > 8:
        raise ValueError("its header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        step, kind = content[at] >> 4, content[at] & 15
        at += 1
        if not step:
            number, at = _read_number(content, at)
        number += step
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            at += 1
        elif kind in (4, 5, 6):
            fields[number], at = _read_number(content, at)
        elif kind == 7:
            at += 8
        elif kind == 8:
            length, at = _read_varint(content, at)
            at += length
        elif kind == 12:
            fields[number], at = _read_struct(content, at, depth + 1)
        else:
            raise ValueError(f"its header has a field of kind {kind}")
    return fields, at + 1


def _read_number(content: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("its header has a number too long")
