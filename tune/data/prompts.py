"""The prompts of examples that are tokenized already, and examples of prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX

if TYPE_CHECKING:
    from torch import Tensor


def find_prompts(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Return what stands before the first answer of each document in a batch: one token at least.

    Documents without an answer (padding, rows that only even out the processes) have none.

    Args:
        batch: `tokens` and `labels` [b, s], not shifted; of packed documents `input_pos`, which begins at 0 with each.
    """
    prompts = []
    for index, (tokens, labels) in enumerate(zip(batch["tokens"], batch["labels"], strict=True)):
        starts = [0]
        if "input_pos" in batch:
            starts += (batch["input_pos"][index][1:] == 0).nonzero().flatten().add(1).tolist()
        for start, end in pairwise([*starts, len(tokens)]):
            answers = (labels[start:end] != CROSS_ENTROPY_IGNORE_IDX).nonzero()
            if len(answers):
                prompts.append(tokens[start : start + max(int(answers[0]), 1)].tolist())
    return prompts


def answered_examples(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[dict[str, list[int]]]:
    """Return an example, with `tokens` and `labels`, of each prompt and its answer, which is what is learnt."""
    return [
        {
            "tokens": [*prompt, *answer],
            "labels": [*(CROSS_ENTROPY_IGNORE_IDX for _ in prompt), *answer],
        }
        for prompt, answer in pairs
    ]
