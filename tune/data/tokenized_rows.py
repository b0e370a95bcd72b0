"""Rows that need no template: tokens with labels, and segments of text that are learnt or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX
from tune.data.rows import describe
from tune.data.values import is_empty, unused_columns, without
from tune.errors import DataError

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

IDS_COLUMNS = ("input_ids", "tokens")
SEGMENTS_COLUMN = "segments"
# 1 where a token is learnt: TRL's names.
_LEARNT_MASKS = ("completion_mask", "assistant_masks")


class TokenizedToExamples:
    """A row of `input_ids` and `labels`, or of `segments`, as tokens and the weights of their losses.

    `labels` are not shifted, and -100 where a token is not learnt; without them every token is. `attention_mask` is 0
    for padding, which is left out; `completion_mask` and `assistant_masks` are 1 where a token is learnt.
    `segments` is a list of `{"text": ..., "label": true or false}`, each tokenized by itself, special tokens among its
    text included; nothing is added.

    Args:
        tokenizer: gives the ids of segments, and says which ids there are.
        ignore_columns: columns that are not read, and not reported as unused.
    """

    def __init__(self, tokenizer: Tokenizer, ignore_columns: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._ignored = tuple(ignore_columns)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{"examples": [(tokens, weights)]}`. Raises DataError where the row does not fit."""
        row = without(row, self._ignored)
        if not is_empty(row.get(SEGMENTS_COLUMN)):
            used: tuple[str, ...] = (SEGMENTS_COLUMN,)
            tokens, weights = self._segments(row[SEGMENTS_COLUMN])
        else:
            column = next((name for name in IDS_COLUMNS if not is_empty(row.get(name))), None)
            if column is None:
                raise DataError(f"has neither {' nor '.join((*IDS_COLUMNS, SEGMENTS_COLUMN))}")
            used = (column, "labels", "attention_mask", *_LEARNT_MASKS)
            tokens, weights = self._ids(row, column)
        unused = dict.fromkeys(unused_columns(row, used), 1)
        return {"examples": [(tokens, weights)], "unused": unused}

    def _ids(self, row: Mapping[str, Any], column: str) -> tuple[list[int], list[float]]:
        ids = _whole_numbers(row[column], column)
        highest = self._tokenizer.vocab_size - 1
        wrong = next((token for token in ids if not 0 <= token <= highest), None)
        if wrong is not None:
            raise DataError(
                f"column {column!r} holds {describe(wrong)}, and this tokenizer has ids from 0 to {highest:,}: these "
                "are tokens of another one"
            )
        labels = _beside(row, "labels", len(ids), ids)
        masks = [_beside(row, name, len(ids), [1] * len(ids)) for name in _LEARNT_MASKS]
        for place, (token, label) in enumerate(zip(ids, labels)):
            if label not in (token, CROSS_ENTROPY_IGNORE_IDX):
                raise DataError(
                    f"token {place + 1} is {token} and its label {label}, expected the same or "
                    f"{CROSS_ENTROPY_IGNORE_IDX}: labels are not shifted"
                )
        read = _beside(row, "attention_mask", len(ids), [1] * len(ids))
        kept = [place for place, mask in enumerate(read) if mask]
        if kept != list(range(kept[0], kept[-1] + 1) if kept else ()):
            raise DataError(
                "column 'attention_mask' is 0 between tokens that are read, expected padding at the ends"
            )
        weights = [
            float(label != CROSS_ENTROPY_IGNORE_IDX and all(mask[place] for mask in masks))
            for place, label in enumerate(labels)
        ]
        return [ids[place] for place in kept], [weights[place] for place in kept]

    def _segments(self, segments: Any) -> tuple[list[int], list[float]]:
        if not isinstance(segments, list | tuple):
            raise DataError(f"column 'segments' is {describe(segments)}, expected a list of objects")
        tokens: list[int] = []
        weights: list[float] = []
        for number, segment in enumerate(segments, start=1):
            text, label = (
                segment.get(key) if isinstance(segment, Mapping) else None for key in ("text", "label")
            )
            if not isinstance(text, str) or label not in (True, False):
                raise DataError(
                    f"segment {number} is {describe(segment)}, expected an object with 'text' and 'label', true or "
                    "false"
                )
            ids = self._tokenizer.encode(
                text, add_bos=False, add_eos=False, continuation=bool(tokens), parse_special=True
            )
            tokens += ids
            weights += [float(label)] * len(ids)
        return tokens, weights


def _whole_numbers(value: Any, column: str) -> list[int]:
    if not isinstance(value, list | tuple) or any(type(item) is not int for item in value):
        raise DataError(f"column {column!r} is {describe(value)}, expected a list of whole numbers")
    return list(value)


def _beside(row: Mapping[str, Any], column: str, length: int, default: Sequence[int]) -> Sequence[int]:
    """Return a column with a number for each token, `default` where the row has none."""
    if is_empty(row.get(column)):
        return default
    numbers = _whole_numbers(row[column], column)
    if len(numbers) != length:
        raise DataError(f"has {length:,} tokens and {len(numbers):,} {column}; a token has one each")
    return numbers
