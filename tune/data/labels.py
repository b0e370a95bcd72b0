"""Which tokens are learnt: labels, the ignored label, and what cutting a sequence does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

# The label of a position that is not learnt; the default `ignore_index` of torch's cross entropy.
CROSS_ENTROPY_IGNORE_IDX = -100

T = TypeVar("T")


def shift_labels(labels: Tensor, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX) -> Tensor:
    """Return the target of each position: the label of the next one.

    Args:
        labels: label of each token itself, `ignore_idx` where it is not learnt. [b, s]
        ignore_idx: given to the last position, which has no next token.

    Returns:
        Targets to compare with the logits at the same positions. [b, s]
    """
    targets = labels.new_full(labels.shape, ignore_idx)
    targets[..., :-1] = labels[..., 1:]
    return targets


def shift_weights(weights: Tensor | None) -> Tensor | None:
    """Return the weight of each position's target, 0 for the last, which has none; None where there are none. [b, s]"""
    return None if weights is None else shift_labels(weights, 0)


def truncate(items: Sequence[T], max_seq_len: int, eos_id: T | None = None) -> list[T]:
    """Return the first `max_seq_len` items.

    A cut sequence ends without EOS, so that a model is never taught to stop in the middle of an answer.

    Args:
        items: tokens, labels or a mask.
        max_seq_len: number of items to keep at most.
        eos_id: when given, and when something was cut, it replaces the last item kept.
    """
    kept = list(items[:max_seq_len])
    if eos_id is not None and len(items) > max_seq_len and kept:
        kept[-1] = eos_id
    return kept


def masked_labels(
    tokens: Sequence[int], mask: Sequence[int], ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX
) -> list[int]:
    """Return the tokens as labels, `ignore_idx` where `mask` is true."""
    return [ignore_idx if is_masked else token for token, is_masked in zip(tokens, mask, strict=True)]
