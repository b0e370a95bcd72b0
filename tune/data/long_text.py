"""Ids of long texts, piece by piece: a tokenizer takes a hundred times the memory of the text that it is given."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tune.tokenizers.control_tokens import ends_in_control_token

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

# Characters of a piece, and how far before its end a place is looked for to end it.
PIECE = 1 << 16
_LOOKED_AT = 1 << 13
# Characters on either side of a place, by which it is judged.
_AROUND = 256
_MAX_TRIED = 8
# Where tokens end: with a line, before the one space between two words, behind a full stop or comma of Chinese and
# Japanese. Never in a run of the same, whose tokens depend on where it began.
_PLACES = tuple(
    map(
        re.compile, (r"(?<=\S\n)(?=\S)", r"(?<=\w)(?= \w)", "(?<=\\w[\u3001\u3002\uff01\uff0c\uff1f])(?=\\w)")
    )
)


def encode_long(tokenizer: Tokenizer, text: str, add_eos: bool, parse_special: bool = False) -> array[int]:
    """Return the ids of a document with its BOS, those of `encode`.

    A long one is encoded in pieces. It is cut only where the ids of the text around the place are those of the text
    before it and after it; where there is no such place, it goes on undivided.

    Args:
        tokenizer: gives the ids.
        text: of any length.
        add_eos: put EOS last.
        parse_special: special tokens written out in the text become their ids; an end that stands there is not added.

    Raises:
        TokenizerError: as `encode`.
    """
    if parse_special:
        add_eos = add_eos and not ends_in_control_token(text, tokenizer)
        return array("i", tokenizer.encode(text, add_bos=True, add_eos=add_eos, parse_special=True))
    ids = array("i")
    for start, end in _pieces(tokenizer, text):
        is_last = end == len(text)
        ids.extend(
            tokenizer.encode(
                text[start:end], add_bos=not start, add_eos=add_eos and is_last, continuation=start > 0
            )
        )
    return ids


def _pieces(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, int]]:
    start, size = 0, PIECE
    while len(text) - start > 2 * size:
        if end := _find_cut(tokenizer, text, start + size):
            yield start, end
            start, size = end, PIECE
        else:
            size *= 2
    yield start, len(text)


def _find_cut(tokenizer: Tokenizer, text: str, end: int) -> int:
    """Return the last place shortly before `end` where the text may be cut, 0 where there is none."""
    for place in _PLACES:
        found = [match.start() for match in place.finditer(text, end - min(_LOOKED_AT, end // 2), end)]
        for at in reversed(found[-_MAX_TRIED:]):
            before, after = text[max(at - _AROUND, 0) : at], text[at : at + _AROUND]
            parts = [_continue(tokenizer, part) for part in (before, after)]
            if _continue(tokenizer, before + after) == parts[0] + parts[1]:
                return at
    return 0


def _continue(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=False, add_eos=False, continuation=True)
