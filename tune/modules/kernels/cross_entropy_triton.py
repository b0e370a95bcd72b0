"""Soft-max, cross-entropy and its gradient in two passes over the logits, in place, in the logits' own dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PER_STEP = 8192
_NUM_WARPS = 16


@triton.jit
def _scores(row, column, vocab_size, softcap):  # type: ignore[no-untyped-def]
    inside = column < vocab_size
    scores = tl.load(row + column, mask=inside, other=0.0).to(tl.float32)
    if softcap is not None:
        # The hyperbolic tangent, by an exponential that ends at 0 and at infinity.
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    return tl.where(inside, scores, -float("inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]
    logits,
    targets,
    factors,
    losses,
    softcap,
    vocab_size: tl.constexpr,
    needs_grad: tl.constexpr,
    size: tl.constexpr,
):
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * vocab_size  # a piece may have more than 2^31 logits
    target = tl.load(targets + index)
    columns = tl.arange(0, size)
    # The sum of exponentials is kept relative to the highest score so far.  # arXiv:1805.02867, algorithm 3
    highest = -float("inf")
    exp_sum = 0.0
    at_target = 0.0
    for start in range(0, vocab_size, size):
        scores = _scores(row, start + columns, vocab_size, softcap)
        higher = tl.maximum(highest, tl.max(scores, 0))
        exp_sum = exp_sum * tl.exp(highest - higher) + tl.sum(tl.exp(scores - higher), 0)
        highest = higher
        at_target += tl.sum(tl.where(start + columns == target, scores, 0.0), 0)
    factor = 1.0
    if factors is not None:
        factor = tl.load(factors + index)
    tl.store(losses + index, (tl.log(exp_sum) + highest - at_target) * factor)
    if needs_grad:
        for start in range(0, vocab_size, size):
            column = start + columns
            scores = _scores(row, column, vocab_size, softcap)
            grad = tl.exp(scores - highest) * (factor / exp_sum) - tl.where(column == target, factor, 0.0)
            if softcap is not None:
                grad *= 1.0 - (scores / softcap) * (scores / softcap)
            tl.store(row + column, grad.to(logits.dtype.element_ty), mask=column < vocab_size)


@torch.library.custom_op("tune::cross_entropy_", mutates_args=("logits",))
def cross_entropy_(
    logits: Tensor, targets: Tensor, factors: Tensor | None, softcap: float | None, needs_grad: bool
) -> Tensor:
    """Return the losses [r], fp32; where asked, the logits become the gradient of their sum.

    Args:
        logits: [r, v], contiguous, bf16 or fp32.
        targets: [r], within the vocabulary.
        factors: what each loss is multiplied by, [r] fp32.
        softcap: bound that a tanh keeps the logits within.
        needs_grad: whether the logits are overwritten.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    # Triton launches on the current device, which need not be the logits'.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _cross_entropy[(logits.shape[0],)](
            logits,
            targets,
            factors,
            losses,
            softcap,
            vocab_size=logits.shape[1],
            needs_grad=needs_grad,
            size=min(_PER_STEP, triton.next_power_of_2(logits.shape[1])),
            num_warps=_NUM_WARPS,
        )
    return losses


@cross_entropy_.register_fake
def _(
    logits: Tensor, targets: Tensor, factors: Tensor | None, softcap: float | None, needs_grad: bool
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)
