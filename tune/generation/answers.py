"""Answers to learn from: with the token that ended them, which is said like any other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from tune.generation.decode import stream_batch
from tune.modules import TransformerDecoder

__all__ = ["write_answers"]


def write_answers(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Return the tokens that a model continues each prompt with, all written together, the stop token included.

    What it gave a token while writing, and what it gives it when the whole text is read at once, differ by the last bit
    of fp32 (a unit in the last place of a log-probability was measured, two thirds were equal to the bit): a product
    with one row is summed in another order than one with many, and only a text that is read anew for each token would
    be free of that. No loss is taken of what was seen while writing, so it does not matter to what is learnt.

    Args:
        model: as in `generate`, and left as it was.
        prompts: of one token at least.
        seeds: one for each prompt.
        max_new_tokens: an answer that reaches it has no stop token.
        temperature: 1 samples from the model's own distribution, 0 is greedy.
        stop_ids: tokens that end an answer.

    Raises:
        GenerationError: as `generate`.
    """
    streams = stream_batch(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seeds,
        stop_ids=stop_ids,
    )
    with ExitStack() as stack:
        for tokens in streams:
            stack.push(tokens)
        answers = [list(tokens) for tokens in streams]
    ends = [[] if tokens.stop_token is None else [tokens.stop_token] for tokens in streams]
    return [answer + end for answer, end in zip(answers, ends, strict=True)]
