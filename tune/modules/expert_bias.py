"""A bias for each expert, added to its rows.

Shapes: n rows, sorted by expert; E experts, o width out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tune.modules.grouped_linear import grouped_outer

# Columns of ones, whose product with a gradient sums it up: as many as the kernel for all experts at once asks for.
_NUM_ONES = 8


def add_expert_bias(x: Tensor, ends: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [n, o] plus each row's expert's bias, in x's dtype.

    Args:
        x: [n, o].
        ends: where the rows of each expert end, [E] int32, as in `grouped_linear`.
        bias: [E, o]; an expert without rows gets a gradient of zeros. None: there are none, and x is returned.
    """
    if bias is None:
        return x
    out: Tensor = _AddBias.apply(x, ends, bias)  # type: ignore[no-untyped-call]
    return out


class _AddBias(torch.autograd.Function):
    """The gradient is summed expert by expert in a fixed order: indexing's own adds rows as they come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(ends)
        ctx.dtype = bias.dtype
        rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)
        experts = torch.searchsorted(ends.to(x.device), rows, right=True)  # [n]
        return x + bias.to(x.dtype)[experts]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ends,) = ctx.saved_tensors
        (grad,) = grads
        grad_bias = None
        if ctx.needs_input_grad[2]:
            ones = grad.new_ones(grad.shape[0], _NUM_ONES)
            grad_bias = grouped_outer(grad, ones, ends, ctx.dtype)[:, :, 0]  # [E, o]
        return grad, None, grad_bias
