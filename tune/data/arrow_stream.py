"""Arrow streams as `datasets` saves them: what a stream unpacks to, known before it is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from tune.data.files import MAX_DOCUMENT_BYTES, DataFile
from tune.data.tables import check_num_rows
from tune.errors import DataError
from tune.utils.escape import escape_control


def check_arrow(file: DataFile) -> None:
    """Raise DataError where an Arrow stream is broken, or its packed buffers hold more than is read into memory."""
    import pyarrow

    unpacked = num_rows = 0
    try:
        with pyarrow.memory_map(str(file.path)) as source:
            reader = pyarrow.MessageReader.open_stream(source)
            for message in _messages(reader):
                rows, size = _batch_size(message.metadata.to_pybytes(), message.body)
                num_rows, unpacked = num_rows + rows, unpacked + size
    except (pyarrow.ArrowException, OSError, EOFError, struct.error) as error:
        raise DataError(f"{file} cannot be read as an Arrow stream: {escape_control(error, 200)}") from error
    check_num_rows(file, num_rows)
    if unpacked > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{file} is packed and unpacks to {unpacked:,} bytes in memory, at most {MAX_DOCUMENT_BYTES:,} are read. "
            "Save it again with datasets' save_to_disk, which does not pack, or as parquet"
        )


def _messages(reader: Any) -> Iterator[Any]:
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


# github.com/apache/arrow, format/Message.fbs: numbers of fields and of kinds of headers
_HEADER_KIND, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DICTIONARY_DATA = 1
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3


def _batch_size(head: bytes, body: Any) -> tuple[int, int]:
    """Return the rows of a message, and the bytes that its packed buffers unpack to."""
    message = struct.unpack_from("<I", head, 0)[0]
    kind_at = _field(head, message, _HEADER_KIND)
    kind = head[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return 0, 0
    batch = _follow(head, _field(head, message, _HEADER))
    if kind == _DICTIONARY_BATCH:
        batch = _follow(head, _field(head, batch, _DICTIONARY_DATA))
    length_at = _field(head, batch, _LENGTH)
    num_rows = struct.unpack_from("<q", head, length_at)[0] if length_at else 0
    if not _field(head, batch, _COMPRESSION) or not _field(head, batch, _BUFFERS):
        return num_rows, 0
    buffers = _follow(head, _field(head, batch, _BUFFERS))
    size = 0
    for index in range(struct.unpack_from("<I", head, buffers)[0]):
        offset, length = struct.unpack_from("<qq", head, buffers + 4 + 16 * index)
        if length >= 8 and offset >= 0:
            # -1 says that the buffer is not packed.
            size += max(struct.unpack_from("<q", body, offset)[0], 0)
    return num_rows, size


def _field(head: bytes, table: int, number: int) -> int:
    """Return where a field of a flatbuffer's table stands, 0 where it has none."""
    fields = table - struct.unpack_from("<i", head, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", head, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", head, fields + at)[0]
    return table + offset if offset else 0


def _follow(head: bytes, at: int) -> int:
    return int(at + struct.unpack_from("<I", head, at)[0])
