"""A step of AdamW in one pass over memory, rounded to bf16 up or down by chance (tune.modules.optim)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PER_PROGRAM = 1024


@triton.jit
def _store(pointer, place, values, random, inside):  # type: ignore[no-untyped-def]
    if pointer.dtype.element_ty == tl.bfloat16:
        # A GPU's own NaN is all ones: with anything added it would become a number.
        random = tl.where(values == values, random & 0xFFFF, 0)
        bits = values.to(tl.uint32, bitcast=True) + random.to(tl.uint32)
        # bf16 is the upper half of fp32; what is left is a number of both, which no store rounds.
        values = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    tl.store(pointer + place, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    weight,
    grad,
    exp_avg,
    exp_avg_sq,
    numel,
    first,
    seed,
    lr,
    beta1,
    beta2,
    weight_decay,
    eps,
    correction1,
    correction2_root,
    size: tl.constexpr,
):
    # 64 bits: a matrix may have more than 2^31 numbers.
    place = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    inside = place < numel
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(exp_avg + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq + place, mask=inside, other=0.0).to(tl.float32)
    # arXiv:1711.05101, algorithm 2
    w = w * (1.0 - lr * weight_decay)
    m = m + (g - m) * (1.0 - beta1)
    v = beta2 * v + (1.0 - beta2) * g * g
    w = w - lr / correction1 * m / (tl.sqrt(v) / correction2_root + eps)
    # Counted random numbers: those of an element are the same wherever it lies.  # doi:10.1145/2063384.2063405
    for_weight, for_moment, for_square, _ = tl.randint4x(seed, place + first)
    _store(weight, place, w, for_weight, inside)
    _store(exp_avg, place, m, for_moment, inside)
    _store(exp_avg_sq, place, v, for_square, inside)


def step_rounded_(parts: list[Tensor], step: int, seed: int, first: int, settings: Any) -> None:
    """Take one step in place.

    Args:
        parts: weight, gradient, mean of gradients and of their squares, of one shape and in order in memory; those in
            bf16 are rounded by chance, the others to the nearest.
        step: which one, from 1 on.
        seed: of the random numbers, below 2^63.
        first: number of the first element in the whole weight, where this is a part of it.
        settings: `lr`, `beta1`, `beta2`, `weight_decay` and `eps`.
    """
    weight = parts[0]
    grid = (triton.cdiv(weight.numel(), _PER_PROGRAM),)
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        _step[grid](
            *parts,
            weight.numel(),
            first,
            seed,
            settings.lr,
            settings.beta1,
            settings.beta2,
            settings.weight_decay,
            settings.eps,
            1 - settings.beta1**step,
            (1 - settings.beta2**step) ** 0.5,
            size=_PER_PROGRAM,
        )
