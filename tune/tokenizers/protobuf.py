"""The wire format of protocol buffers, as far as SentencePiece files need it.

https://protobuf.dev/programming-guides/encoding/: a message is a row of fields, each a varint of
`number << 3 | kind`, then its value: a varint, 8 bytes, a length and that many bytes, or 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_FIXED_BYTES = {1: 8, 5: 4}


class Field(NamedTuple):
    """One field of a message: `value` is a number for a varint, else its bytes; `raw` is all of it as it stands."""

    number: int
    value: int | bytes
    raw: bytes


def read_fields(message: bytes) -> Iterator[Field]:
    """Yield the fields of a message in order.

    Raises:
        ValueError: the bytes are no message, or end in the middle of one.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, position = _read_varint(message, position)
        else:
            if kind == 2:
                size, position = _read_varint(message, position)
            elif kind in _FIXED_BYTES:
                size = _FIXED_BYTES[kind]
            else:
                raise ValueError(f"a field of kind {kind} at byte {start}")
            value = message[position : position + size]
            position += size
        if number == 0 or position > len(message):
            raise ValueError(f"the field at byte {start} reaches beyond the {len(message)} bytes there are")
        yield Field(number, value, message[start:position])


def write_bytes_field(number: int, value: bytes) -> bytes:
    """Return a field that holds `value`."""
    return _write_varint(number << 3 | 2) + _write_varint(len(value)) + value


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number that does not end at byte {position}")


def _write_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
