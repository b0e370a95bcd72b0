"""What an answer is worth beside its reference: from 0, wrong, to 1, right.

A metric of one's own is a function like these, named by its dotted path: two texts, and arguments of its own that have
defaults. Nothing here reads files or imports torch.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import NoReturn

__all__ = ["contains", "exact_match", "json_valid", "normalized_match", "number", "rouge_l"]

# A comma belongs to a number where it parts its digits (1,234 and 1,00,000), not in a list (3,4).
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{2,3}){0,6},\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


def exact_match(answer: str, reference: str) -> float:
    """Return 1 where the answer is the reference to the letter, white space around them aside."""
    return float(answer.strip() == reference.strip())


def normalized_match(answer: str, reference: str) -> float:
    """Return 1 where they are the same but for case, punctuation, articles and white space (arXiv:1606.05250, 6.1)."""
    return float(_normalize(answer) == _normalize(reference))


def contains(answer: str, reference: str, ignore_case: bool = True) -> float:
    """Return 1 where the reference stands somewhere in the answer."""
    if ignore_case:
        answer, reference = answer.casefold(), reference.casefold()
    return float(reference.strip() in answer)


def number(answer: str, reference: str) -> float:
    """Return 1 where the last number of both is the same, as in GSM8K (arXiv:2110.14168): `18`, `18.0` and `$18.00.`

    A reference without a number is a mistake in the data, and no answer is right.
    """
    wanted = find_last_number(reference)
    return float(wanted is not None and find_last_number(answer) == wanted)


def rouge_l(answer: str, reference: str, beta: float = 1.0) -> float:
    """Return ROUGE-L: the F-measure of their longest common subsequence of words (Lin 2004, W04-1013, 3.1).

    Words are runs of letters and digits in lower case, not stemmed.

    Args:
        answer, reference: two texts; where either has no words, the measure is 0.
        beta: how much recall counts beside precision.
    """
    said, wanted = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    common = _longest_common_subsequence(said, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def json_valid(answer: str, reference: str) -> float:
    """Return 1 where the whole answer is JSON (RFC 8259), whatever the reference says."""
    try:
        json.loads(answer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def find_last_number(text: str) -> Decimal | None:
    """Return the last number in a text, without the commas that part its thousands; None where there is none."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def _normalize(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(letter for letter in folded if not unicodedata.category(letter).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return its length, by the usual table, of which one row is kept."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
