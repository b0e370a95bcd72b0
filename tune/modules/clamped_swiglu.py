"""The gate of gpt-oss's experts: bounded on both of its sides, and open a little where nothing is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClampedSwiGLU:
    """(up + 1) gate sigmoid(alpha gate), with both kept within bounds.  # arXiv:2508.10925, 2.2

    Args:
        alpha: how steep the sigmoid is.
        limit: the gate is at most this, and up is between minus this and this.
    """

    alpha: float = 1.702
    limit: float = 7.0

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return [...] for a gate [...] and what it opens [...]; these two alone are kept for the backward pass."""
        out: Tensor = _Clamped.apply(gate, up, self.alpha, self.limit)  # type: ignore[no-untyped-call]
        return out

    def problems(self) -> Iterator[str]:
        """Yield what no gate can be."""
        for name, value in vars(self).items():
            if not 0 < value < inf:
                yield f"the gate's {name} is {value}; it must be above 0 and finite"


class _Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.alpha, ctx.limit = alpha, limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        alpha, limit = ctx.alpha, ctx.limit
        bounded = gate.clamp(max=limit)
        share = torch.sigmoid(bounded * alpha)
        # At a bound itself the gradient passes, as clamp's does.
        slope = share * (1 + bounded * alpha * (1 - share)) * (gate <= limit)
        grad_gate = grad * (up.clamp(-limit, limit) + 1) * slope
        grad_up = grad * (bounded * share) * ((up >= -limit) & (up <= limit))
        return grad_gate, grad_up, None, None
