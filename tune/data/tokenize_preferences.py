"""Preference rows as tokens: a pair is two examples of a store, one after the other; a judged answer is one.

Pairs with margins are three: the last one has the bits of a margin in the place of tokens.

No torch is needed here: other processes do this, too.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.data.files import Row
from tune.data.store import Examples
from tune.data.tokenize_rows import ConversationTokenizer, OnTooLong, TokenizedRows
from tune.errors import DataError, TokenizerError

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

SAME = "pairs whose two answers are the same, from which nothing can be learnt"
_Tokens = tuple[list[int], list[float]]


@dataclass(frozen=True)
class _PreferenceTokenizer(ABC):
    """What makes tokens of preference rows; it can be handed to another process.

    Args:
        single: writes one conversation; its transform reads the rows.
    """

    single: ConversationTokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Gives the ids."""
        return self.single.tokenizer

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have with its prompt."""
        return self.single.limit

    @property
    def on_too_long(self) -> OnTooLong:
        """What becomes of one that has more."""
        return self.single.on_too_long

    def __call__(self, rows: Sequence[Row]) -> TokenizedRows:
        """Return what comes of some rows."""
        result = TokenizedRows(Examples(self.tokenizer.vocab_size))
        for row in rows:
            result.report.num_rows += 1
            if row.problem:
                result.reject(row.place, row.problem)
                continue
            try:
                read = self.single.transform(row.values)
                written = self._write(read)
            except (DataError, TokenizerError) as error:
                result.reject(row.place, str(error))
                continue
            result.report.note_row(read)
            for examples in written:
                if self._add(result, row.place, examples) and (margin := read.get("margin")) is not None:
                    result.examples.append(write_number(margin), [1.0, 1.0])
        return result

    def stopped(self, row: Row, error: Exception) -> TokenizedRows:
        """Return what stands for a row that took its process with it."""
        return self.single.stopped(row, error)

    @abstractmethod
    def _write(self, read: Any) -> list[list[_Tokens]]:
        """Return the examples of each pair, or of each judged answer, of a row."""

    def _one(self, messages: Any, read: Any) -> _Tokens:
        examples = self.single.write(messages, read.get("tools"))
        if len(examples) != 1:
            raise DataError(
                f"its answer takes {len(examples)} examples to be written as it is generated (the template writes "
                "earlier answers otherwise once more turns follow), and it is compared as one: let it have one turn"
            )
        return examples[0]

    def _add(self, result: TokenizedRows, place: str, examples: Sequence[_Tokens]) -> bool:
        """Keep the examples of a pair together, or leave them out together; return whether they were kept."""
        report, limit = result.report, self.limit
        if any(not any(weights[1:]) for _, weights in examples):
            report.num_unlearnt += 1
            return False
        longest = max(len(tokens) for tokens, _ in examples)
        num_cut = result.count_cut(place, longest, limit, self.on_too_long)
        if num_cut is None:
            return False
        kept = [(tokens[:limit], weights[:limit]) for tokens, weights in examples]
        if any(not any(weights[1:]) for _, weights in kept):
            report.num_lost += 1
            return False
        if len(kept) > 1 and kept[0][0] == kept[1][0]:
            report.note_row({"notes": {SAME: 1}})
        for tokens, weights in kept:
            targets = weights[1:]
            result.examples.append(tokens, weights)
            report.num_tokens += len(tokens)
            report.num_target_tokens += len(targets) - targets.count(0.0)
            report.num_weighted_tokens += sum(abs(weight) not in (0.0, 1.0) for weight in targets)
        result.num_cut.extend(
            len(whole) - len(cut) for (whole, _), (cut, _) in zip(examples, kept, strict=True)
        )
        report.num_examples += 1
        report.num_sides += len(kept) if len(kept) > 1 else 0
        return True


@dataclass(frozen=True)
class PairTokenizer(_PreferenceTokenizer):
    """Tokenizes rows that `PairToMessages` reads: of each pair the chosen conversation, then the rejected one.

    Both are cut at the same length, or left out together: where a cut would leave nothing of one answer, too.
    """

    def _write(self, read: Any) -> list[list[_Tokens]]:
        return [[self._one(read[side], read) for side in ("messages", "rejected")]]


@dataclass(frozen=True)
class JudgedTokenizer(_PreferenceTokenizer):
    """Tokenizes rows that `JudgedToMessages` reads; what is learnt of a bad answer has weights below 0."""

    def _write(self, read: Any) -> list[list[_Tokens]]:
        written = []
        for messages, is_good in read["judged"]:
            tokens, weights = self._one(messages, read)
            written.append([(tokens, weights if is_good else [-weight for weight in weights])])
        return written


def write_number(number: float) -> list[int]:
    """Return the bits of a number in fp32 as two numbers of 16, which a store holds whatever the vocabulary is."""
    return list(struct.unpack("<2H", struct.pack("<f", number)))


def read_number(tokens: Sequence[int]) -> float:
    """Return the number that `write_number` has written."""
    number: float = struct.unpack("<f", struct.pack("<2H", *tokens))[0]
    return number
