"""Segments: the pieces in which a conversation is tokenized, and which of their tokens are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Segment:
    """A piece of text that is tokenized in one go.

    Args:
        text: as the model reads it.
        masked: True where its tokens are not learnt.
        add_bos: starts a sequence with a BOS.
        add_eos: ends it with an EOS, which is learnt where the text is.
        continuation: goes on right after the segment before.
    """

    text: str
    masked: bool
    add_bos: bool = False
    add_eos: bool = False
    continuation: bool = False


def tokenize_segments(
    tokenizer: Tokenizer, segments: Sequence[Segment], add_eos: bool = True
) -> tuple[list[int], list[bool]]:
    """Return the tokens of all segments and for each whether it is masked (not learnt).

    A BOS is always masked: nothing comes before it that it could follow from.

    Args:
        tokenizer: gives the ids.
        segments: as a template writes them.
        add_eos: False leaves out the EOS at the very end, for an answer that shall be continued.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    for segment in segments:
        ends = segment.add_eos and (add_eos or segment is not segments[-1])
        ids = tokenizer.encode(
            segment.text, add_bos=segment.add_bos, add_eos=ends, continuation=segment.continuation
        )
        masked = [segment.masked] * len(ids)
        if segment.add_bos and ids[:1] == [tokenizer.bos_id]:
            masked[0] = True
        tokens += ids
        mask += masked
    return tokens, mask
