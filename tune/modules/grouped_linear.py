"""Many small matrix products as one: each run of rows has a matrix of its own, and nothing waits for the device.

Shapes: n rows, E matrices, o width out, i width in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Public since 2.10; the earlier name does the same.
_grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def can_group(device: torch.device, dtype: torch.dtype, *widths: int) -> bool:
    """Return whether torch has one kernel for this, not a loop: from Hopper on, in bf16, in rows of whole 16 bytes."""
    fits = device.type == "cuda" and dtype == torch.bfloat16 and not any(width % 8 for width in widths)
    return fits and torch.cuda.get_device_capability(device) >= (9, 0)


def grouped_linear(x: Tensor, ends: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return [n, o]: the rows of x [n, i] from one end to the next times the matrix of that place, transposed.

    Args:
        x: [n, i].
        ends: where the rows of each matrix end, [E] int32; a matrix without rows gets a gradient of zeros.
        weights: E matrices [o, i] of one type; they are computed with in that of x.
    """
    out: Tensor = _GroupedLinear.apply(x, ends, *weights)  # type: ignore[no-untyped-call]
    return out


def _stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return [E, o, i]."""
    stack = torch.empty((len(weights), *weights[0].shape), dtype=dtype, device=weights[0].device)
    torch._foreach_copy_(list(stack.unbind()), list(weights))
    return stack


class _GroupedLinear(torch.autograd.Function):
    """The matrices are stacked for each product and let go after it: kept are only those that are there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, ends, *weights)
        out: Tensor = _grouped_mm(x, _stacked(weights, x.dtype).transpose(1, 2), offs=ends)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, ends, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x: Tensor | None = None
        grad_weights: Sequence[Tensor | None] = [None] * len(weights)
        if ctx.needs_input_grad[0]:
            grad_x = _grouped_mm(grad, _stacked(weights, x.dtype), offs=ends)
        if any(ctx.needs_input_grad[2:]):
            stack = _grouped_mm(grad.t(), x, offs=ends)  # [E, o, i]
            # Not every GPU's kernel writes what no row reaches (pytorch issue 172439).
            is_idle = ends == F.pad(ends[:-1], (1, 0))
            stack = stack.masked_fill_(is_idle[:, None, None], 0.0).to(weights[0].dtype)
            grad_weights = stack.unbind()
        return grad_x, None, *grad_weights


def gather_rows(x: Tensor, order: Tensor, inverse: Tensor, repeats: int = 1) -> Tensor:
    """Return row order[j] // repeats of x [n, d] for each j, [n * repeats, d].

    Args:
        x: [n, d].
        order: a permutation of the numbers below n * repeats.
        inverse: its inverse.
        repeats: how many times each row is there.
    """
    out: Tensor = _GatherRows.apply(x, order, inverse, repeats)  # type: ignore[no-untyped-call]
    return out


class _GatherRows(torch.autograd.Function):
    """Both directions are gathers, and sums have a fixed order: indexing's own gradient adds rows as they come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.repeats = repeats
        return x[order if repeats == 1 else order // repeats]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        grad = grads[0][inverse]  # [n * repeats, d]
        if ctx.repeats > 1:
            grad = grad.view(-1, ctx.repeats, grad.shape[-1]).sum(1)  # [n, d]
        return grad, None, None, None
