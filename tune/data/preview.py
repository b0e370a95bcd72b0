"""Examples as text, with what is learnt told apart: for a look before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer


def preview_example(tokenizer: Tokenizer, example: Mapping[str, Sequence[int]]) -> list[tuple[str, bool]]:
    """Return an example as runs of text, each with whether it is learnt.

    The runs joined are the whole text, special tokens written out. A character whose bytes are partly
    learnt belongs to the later run.

    Args:
        tokenizer: the one that made the example.
        example: `tokens` and `labels`, as datasets give them.
    """
    runs: list[tuple[str, bool]] = []
    seen: list[int] = []
    shown = ""
    pairs = zip(example["tokens"], example["labels"], strict=True)
    for is_learnt, run in groupby(pairs, key=lambda pair: pair[1] != CROSS_ENTROPY_IGNORE_IDX):
        seen += [token for token, _ in run]
        text = tokenizer.decode(seen, skip_special=False)
        whole = text if len(seen) == len(example["tokens"]) else text.rstrip("�")
        runs.append((whole[len(shown) :], is_learnt))
        shown = whole
    return runs
