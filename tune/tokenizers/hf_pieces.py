"""Texts between special tokens, tokenized as the one string that they make.

How the `tokenizers` library splits a string at its special tokens (white space that they take along, the space
before the first word) depends on their neighbours, so the string must be handed over whole. But a user's text may
hold the same characters as a special token. So each special token is written as a marker of private characters that
no text holds, and the markers are what is looked for.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from tune.tokenizers.hf_backend import encode_raw
from tune.tokenizers.settings import AddedToken

if TYPE_CHECKING:
    import tokenizers

Span = tuple[int, int]

# Supplementary Private Use Area-A: no character there has a meaning, and no normalisation changes it.
_FIRST, _LAST, _BLOCK = 0xF0000, 0xFFFF0, 16
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_LAST + _BLOCK)}]")


def unused_block(texts: Iterable[str]) -> int:
    """Return the first of a row of private characters of which no text holds any."""
    held = {ord(char) // _BLOCK for text in texts if not text.isascii() for char in _PRIVATE.findall(text)}
    return next(block for block in range(_FIRST, _LAST, _BLOCK) if block // _BLOCK not in held)


class PieceEncoder:
    """Encodes texts and special tokens in turn.

    Args:
        backend: a tokenizer of its own, which gets the markers as added tokens.
        entries: added tokens by id.
        vocab_size: ids from here on are free for the markers.
        block: first of the private characters that markers are written in.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, entries: Mapping[int, AddedToken], vocab_size: int, block: int
    ) -> None:
        import tokenizers

        self._backend = backend
        self._texts = {token_id: token.content for token_id, token in entries.items()}
        self._markers = {token_id: _marker(token_id, block) for token_id in entries}
        _fill_gaps(backend, vocab_size, block)
        backend.add_tokens(
            [
                tokenizers.AddedToken(self._markers[token_id], **{**token.flags(), "special": False})
                for token_id, token in entries.items()
            ]
        )
        self._real = {backend.token_to_id(marker): token_id for token_id, marker in self._markers.items()}

    def encode(self, pieces: Sequence[str | int]) -> tuple[list[int], list[Span]]:
        """Return the ids, and for each the characters [start, end) of the pieces written out."""
        pieces = list(pieces)
        while True:
            ids, spans, missed = self._encode(pieces)
            if not missed:
                return ids, spans
            # A token may be found beside some neighbours only (`single_word`); beside others it is text.
            pieces = [
                self._texts[piece] if isinstance(piece, int) and index in missed else piece
                for index, piece in enumerate(pieces)
            ]

    def _encode(self, pieces: Sequence[str | int]) -> tuple[list[int], list[Span], set[int]]:
        parts: list[str] = []
        # Where each piece starts in the text with markers, and in the text with the tokens' names; its length there.
        starts: list[int] = []
        places: list[Span] = []
        position = offset = 0
        for piece in pieces:
            text = self._texts[piece] if isinstance(piece, int) else piece
            part = self._markers[piece] if isinstance(piece, int) else piece
            starts.append(position)
            places.append((offset, len(text)))
            parts.append(part)
            position += len(part)
            offset += len(text)
        starts.append(position)
        places.append((offset, 0))
        encoding = encode_raw(self._backend, "".join(parts))

        def place(index: int) -> int:
            piece = bisect_right(starts, index) - 1
            start, length = places[piece]
            return start + min(index - starts[piece], length)

        ids, offsets = encoding.ids, encoding.offsets
        markers = [index for index, token_id in enumerate(ids) if token_id in self._real]
        numbers = [number for number, piece in enumerate(pieces) if isinstance(piece, int)]
        at_markers = [(starts[number], starts[number + 1]) for number in numbers]
        if [offsets[index] for index in markers] == at_markers:
            # Each marker stands for itself, so what is between two of them is moved as one.
            spans: list[Span] = []
            last = shift = 0
            for index, number in zip(markers, numbers):
                spans += _moved(offsets[last:index], shift)
                ids[index] = self._real[ids[index]]
                start, length = places[number]
                spans.append((start, start + length))
                last, shift = index + 1, start + length - starts[number + 1]
            return ids, _without_gaps(spans + _moved(offsets[last:], shift), offset), set()
        missed = set(numbers)
        for index in markers:
            start, end = offsets[index]
            missed -= set(range(bisect_left(starts, start), bisect_left(starts, end)))
            ids[index] = self._real[ids[index]]
        spans = [(place(start), place(end)) for start, end in offsets]
        return ids, _without_gaps(spans, offset), missed


def _moved(spans: list[Span], shift: int) -> list[Span]:
    return [(start + shift, end + shift) for start, end in spans] if shift else spans


def _fill_gaps(backend: tokenizers.Tokenizer, vocab_size: int, block: int) -> None:
    """Add tokens that nothing finds, until the next one gets an id of its own.

    Added tokens are numbered from the number of tokens on, which where ids are left out belongs to another.
    """
    first = _marker(0, block) + chr(block)
    backend.add_tokens([first])
    num_missing = vocab_size - 1 - int(backend.token_to_id(first) or 0)
    if num_missing > 0:
        backend.add_tokens([_marker(index, block) + chr(block) for index in range(1, num_missing + 1)])


def _without_gaps(spans: list[Span], length: int) -> list[Span]:
    """Gives characters that normalisation took into the one before (an accent) to that one's tokens."""
    flat = [*chain.from_iterable(spans), length]  # starts and ends in turn
    if flat[1::2] == flat[2::2]:
        return spans
    filled = list(spans)
    following = length
    for index in range(len(spans) - 1, -1, -1):
        start, end = spans[index]
        shares = index + 1 < len(spans) and spans[index + 1] == spans[index]
        filled[index] = (start, filled[index + 1][1] if shares else max(end, following))
        following = start
    return filled


def _marker(token_id: int, block: int) -> str:
    digits = "".join(chr(block + int(digit)) for digit in str(token_id))
    return chr(block + 10) + digits + chr(block + 11)
