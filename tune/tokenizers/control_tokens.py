"""Tokens that structure what a model reads, written out in data: text that is in a chat format already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from tune.errors import DataError

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

# Rows with such text, of those looked at, from which on it is no accident.
_SHARE = 0.1
# Characters looked at, at both ends of a text.
_NUM_CHARS = 20_000
_NUM_NAMED = 4
# What people also write about, and what stands for no turn: thoughts, calls, places in code, images.
_NOT_STRUCTURE = re.compile(
    r"think|tool|thought|reason|fim|image|vision|audio|video|mask|unk|pad|reserved|unused", re.I
)


def check_control_tokens(
    tokenizer: Tokenizer, rows: Iterable[Sequence[tuple[str, bool]]], source: str, other_kind: str
) -> None:
    """Refuse data whose texts are in a chat format already: special tokens would be read as letters.

    A row counts where a text begins with such a token, an answer or a document ends with one, or a text holds two of
    them, one at the start of a line. One row in ten is enough; a token that is merely spoken of is none.

    Args:
        tokenizer: has the special tokens.
        rows: the texts of the first rows, and for each whether it is an answer or a document.
        source: where they come from.
        other_kind: what else to do than to set parse_special_tokens.

    Raises:
        DataError: it is; names the tokens.
    """
    pattern = _pattern(control_tokens(tokenizer))
    num_rows = num_found = 0
    names: dict[str, None] = {}
    for texts in rows:
        num_rows += 1
        found = [token for text, is_whole in texts for token in _structure_in(text, is_whole, pattern)]
        num_found += bool(found)
        names |= dict.fromkeys(found)
    if not num_found or num_found < _SHARE * num_rows:
        return
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    raise DataError(
        f"{num_found:,} of the first {num_rows:,} rows of {source} hold special tokens of this tokenizer, written out: "
        f"{', '.join(list(names)[:_NUM_NAMED])}{more}. They would be learnt as letters, and an end put behind them. If "
        f"they are meant as tokens, set dataset.parse_special_tokens=true; {other_kind}. If they are mere text, set "
        "dataset.parse_special_tokens=false"
    )


def control_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens that begin or end a text or a turn."""
    ends = frozenset((tokenizer.bos_id, *tokenizer.stop_ids, *tokenizer.bos_ids))
    return _structural(tuple(tokenizer.special_tokens.items()), ends)


@lru_cache(maxsize=16)
def _structural(tokens: tuple[tuple[str, int], ...], ends: frozenset[int]) -> tuple[str, ...]:
    return tuple(
        text for text, token_id in tokens if token_id in ends or (text and not _NOT_STRUCTURE.search(text))
    )


def ends_in_control_token(text: str, tokenizer: Tokenizer) -> bool:
    """Return whether a text ends with such a token, white space aside."""
    return text.rstrip().endswith(control_tokens(tokenizer))


def _structure_in(text: str, is_whole: bool, pattern: re.Pattern[str]) -> list[str]:
    """Return the control tokens of a text, none where it merely speaks of one."""
    inner = text.strip()
    if len(inner) > 2 * _NUM_CHARS:
        inner = f"{inner[:_NUM_CHARS]}\0{inner[-_NUM_CHARS:]}"
    found = list(pattern.finditer(inner))
    if not found:
        return []
    is_at_border = found[0].start() == 0 or (is_whole and found[-1].end() == len(inner))
    is_on_line = len(found) > 1 and any(inner.startswith("\n", token.start() - 1) for token in found)
    return [token.group() for token in found] if is_at_border or is_on_line else []


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
