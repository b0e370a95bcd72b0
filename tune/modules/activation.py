"""Functions of a gate."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["silu", "gelu_tanh"]


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """Return the function of this name, gelu in its tanh form."""
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def activate_times(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return the function of the gate times `up`, both of one shape.

    Only these two are kept for the backward pass, which forms the function anew: of the four tensors of the
    feed-forward's width that autograd would keep in a block, one is saved, and its memory need not be written.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return activate(gate, activation) * up  # the compiler finds that by itself
    out: Tensor = _ActivateTimes.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    return out


class _ActivateTimes(torch.autograd.Function):
    """To the bit what autograd makes of the plain formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return activate(gate, activation).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Activation], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.activation = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grad_outputs[0]
        of_up = activate(gate, ctx.activation).mul_(grad)
        of_function = grad * up
        if ctx.activation == "silu":
            return torch.ops.aten.silu_backward(of_function, gate), of_up, None
        return torch.ops.aten.gelu_backward(of_function, gate, approximate="tanh"), of_up, None
