"""Tokenized examples in flat arrays: 3 bytes a token for vocabularies up to 65,536, 5 beyond."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from tune.data.labels import masked_labels


class TokenStore:
    """A list of (tokens, mask) pairs that is small in memory and cheap to hand to worker processes."""

    def __init__(self, vocab_size: int) -> None:
        # "H" holds 16 bits, "i" 32: a million examples of 200 tokens take 0.6 GB instead of 13 GB as lists.
        self._tokens = array("H" if vocab_size <= 1 << 16 else "i")
        self._mask = bytearray()
        self._ends = array("q", [0])

    def append(self, tokens: Sequence[int], mask: Sequence[bool]) -> None:
        """Add an example; `mask` is true where a token is not learnt."""
        self._tokens.extend(tokens)
        self._mask.extend(mask)
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def length(self, index: int) -> int:
        """Return the number of tokens of an example."""
        start, end = self._bounds(index)
        return end - start

    def tokens(self, index: int) -> list[int]:
        """Return the tokens of an example."""
        start, end = self._bounds(index)
        return self._tokens[start:end].tolist()

    def labels(self, index: int) -> list[int]:
        """Return the tokens of an example, ignored ones where it is not learnt."""
        start, end = self._bounds(index)
        return masked_labels(self._tokens[start:end], self._mask[start:end])

    def _bounds(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} examples")
        index %= len(self)
        return self._ends[index], self._ends[index + 1]
