"""Changes to SentencePiece files, and the places in a text that pieces stand for.

Field numbers are those of sentencepiece/src/sentencepiece_model.proto and sentencepiece.proto.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tune.tokenizers.protobuf import read_fields, write_bytes_field

# ModelProto.normalizer_spec (field 3) with add_dummy_prefix (field 3 of NormalizerSpec) false. Protobuf merges
# a message field that comes twice, so appending these bytes to a model switches the dummy prefix off and
# leaves everything else.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# The same with remove_extra_whitespaces (field 4) false as well.
SPACES_AS_THEY_ARE = b"\x1a\x04\x18\x00\x20\x00"
_PIECES = 1  # of ModelProto
_PIECE, _TYPE = 1, 3  # of ModelProto.SentencePiece
_TYPE_CONTROL = b"\x18\x03"  # field 3, varint, CONTROL


def with_control_pieces(proto: bytes, names: Collection[str]) -> bytes:
    """Return a model in which the named pieces are control tokens: no text becomes one of them."""
    encoded = {name.encode() for name in names}
    parts = []
    for outer in read_fields(proto):
        part = outer.raw
        if outer.number == _PIECES and isinstance(outer.value, bytes):
            fields = list(read_fields(outer.value))
            if any(field.number == _PIECE and field.value in encoded for field in fields):
                kept = b"".join(field.raw for field in fields if field.number != _TYPE)
                part = write_bytes_field(_PIECES, kept + _TYPE_CONTROL)
        parts.append(part)
    return b"".join(parts)


def read_spans(processor: Any, text: str) -> list[tuple[int, tuple[int, int]]]:
    """Return the ids of a text, each with the characters [start, end) it stands for."""
    # The places are counted in UTF-8 bytes there.
    characters = []
    for index, char in enumerate(text):
        characters += [index] * len(char.encode())
    characters.append(len(text))
    found: list[tuple[int, tuple[int, int]]] = []
    for outer in read_fields(processor.encode(text, out_type="serialized_proto")):
        if outer.number == 2 and isinstance(outer.value, bytes):
            fields = {field.number: field.value for field in read_fields(outer.value)}
            token_id, start, end = (int(fields.get(number, 0)) for number in (2, 4, 5))
            found.append((token_id, (characters[start], characters[end])))
    # Of the bytes of one character only the last is said to stand for it.
    for index in range(len(found) - 2, -1, -1):
        token_id, (start, end) = found[index]
        if start == end and processor.is_byte(token_id) and processor.is_byte(found[index + 1][0]):
            found[index] = (token_id, found[index + 1][1])
    return found
