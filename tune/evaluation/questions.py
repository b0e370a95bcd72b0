"""What an example asks, and the answer it has, both as the model would read and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.data import CROSS_ENTROPY_IGNORE_IDX
from tune.tokenizers import Tokenizer

__all__ = ["Question", "find_question"]


@dataclass(frozen=True)
class Question:
    """What is asked in an example, and what should be said.

    Args:
        prompt: its tokens, the very ones that stand before the answer in training.
        reference: the answer as text, without the token that ends it.
    """

    prompt: list[int]
    reference: str


def find_question(item: Mapping[str, Sequence[Any]], tokenizer: Tokenizer) -> Question | None:
    """Return what stands before the last answer of an example, and that answer; None where nothing is asked.

    An answer is what has labels: so template, system prompt and earlier turns are those of training. Where all of a
    text is learnt, as with `train_on_input` or bare text, nothing in it is a question.

    Args:
        item: `tokens` and `labels`, of one document.
        tokenizer: the one that made it.
    """
    tokens, labels = list(item["tokens"]), item["labels"]
    learnt = [place for place, label in enumerate(labels) if label != CROSS_ENTROPY_IGNORE_IDX]
    if not learnt:
        return None
    end = start = learnt[-1]
    while start > 0 and labels[start - 1] != CROSS_ENTROPY_IGNORE_IDX:
        start -= 1
    if all(token in tokenizer.bos_ids for token in tokens[:start]):
        return None
    stops = (place for place in range(start, end + 1) if tokens[place] in tokenizer.stop_ids)
    return Question(tokens[:start], tokenizer.decode(tokens[start : next(stops, end + 1)]).strip())
