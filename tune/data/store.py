"""Tokenized examples in flat arrays: 3 bytes a token for vocabularies up to 65,536, 5 beyond."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from tune.data.labels import masked_labels
from tune.errors import DataError

# A byte for each token says which weight it has.
_MAX_WEIGHTS = 256
_LEARNT, _MASKED = 0, 1


class TokenStore:
    """A list of (tokens, weights) pairs that is small in memory and cheap to hand to worker processes."""

    def __init__(self, vocab_size: int) -> None:
        # "H" holds 16 bits, "i" 32: a million examples of 200 tokens take 0.6 GB instead of 13 GB as lists.
        self._tokens = array("H" if vocab_size <= 1 << 16 else "i")
        self._codes = bytearray()
        self._code_of = {1.0: _LEARNT, 0.0: _MASKED}
        self._ends = array("q", [0])

    def append(self, tokens: Sequence[int], weights: Sequence[float]) -> None:
        """Add an example; `weights` says for each token what its loss is multiplied by, 0 where it is not learnt.

        Raises:
            DataError: these are more different weights than can be held.
        """
        for weight in set(weights).difference(self._code_of):
            if len(self._code_of) == _MAX_WEIGHTS:
                raise DataError(
                    f"there are more than {_MAX_WEIGHTS} different weights of messages, 0 and 1 among them; this one "
                    f"is {weight}. Round them, to two digits perhaps"
                )
            self._code_of[weight] = len(self._code_of)
        self._tokens.extend(tokens)
        self._codes.extend(map(self._code_of.__getitem__, weights))
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def length(self, index: int) -> int:
        """Return the number of tokens of an example."""
        start, end = self._bounds(index)
        return end - start

    def example(self, index: int) -> dict[str, list[Any]]:
        """Return the `tokens` and `labels` of an example, with `weights` where a learnt token has another than 1."""
        start, end = self._bounds(index)
        tokens, codes = self._tokens[start:end].tolist(), self._codes[start:end]
        example: dict[str, list[Any]] = {
            "tokens": tokens,
            "labels": masked_labels(tokens, [code == _MASKED for code in codes]),
        }
        if max(codes) > _MASKED:
            weights = list(self._code_of)
            example["weights"] = [weights[code] for code in codes]
        return example

    def _bounds(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} examples")
        index %= len(self)
        return self._ends[index], self._ends[index + 1]
