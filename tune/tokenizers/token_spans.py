"""Which characters of a text each of its tokens stands for, also where the text goes on behind other text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tune.tokenizers.stream import StreamDecoder

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

Span = tuple[int, int]


def find_spans(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[Span] | None:
    """Return the characters that each id of a text stands for, None where that cannot be told.

    Args:
        tokenizer: gave the ids.
        text: stands at the beginning, or goes on where other text ended.
        ids: of the text alone, without BOS or EOS.
    """
    # Behind a special token no space is put before a text, as in a continuation.
    leads: tuple[list[str | int], ...] = ([], [tokenizer.eos_id])
    for lead in leads:
        found, spans = tokenizer.encode_pieces_with_spans([*lead, text])
        if found[len(lead) :] == list(ids):
            offset = spans[0][1] if lead else 0
            return [(start - offset, end - offset) for start, end in spans[len(lead) :]]
    return _decoded_spans(tokenizer, text, ids)


def _decoded_spans(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[Span] | None:
    """Return the characters of each id by what it adds to a text that is decoded; ids of one character share it."""
    decoder = StreamDecoder(tokenizer, skip_special=False)
    for token_id in tokenizer.encode(
        "a", add_bos=False, add_eos=False
    ):  # or a first space would be taken off
        decoder.push(token_id)
    spans: list[Span] = []
    shown, num_waiting = "", 0
    for token_id in ids:
        piece = decoder.push(token_id)
        num_waiting += 1
        if piece:
            spans += [(len(shown), len(shown) + len(piece))] * num_waiting
            shown, num_waiting = shown + piece, 0
    return spans if shown == text and not num_waiting else None
