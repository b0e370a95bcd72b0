"""A product with a matrix that is kept in another type, of which no copy is left.

Shapes: i width in, o width out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


# One operator: the compiler can neither keep the copy nor find that both passes make the same one, and share it.
@torch.library.custom_op("tune::cast_matmul", mutates_args=())
def cast_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Return x W^T + bias [..., o] for x [..., i], or x W [..., i] for x [..., o], with W [o, i] in x's type."""
    matrix = weight.to(x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    out = F.linear(flat, matrix if transposed else matrix.t(), None if bias is None else bias.to(x.dtype))
    return out.view(*x.shape[:-1], out.shape[-1])


@cast_matmul.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0 if transposed else 1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    flat = grad.reshape(-1, grad.shape[-1])
    if ctx.needs_input_grad[0]:
        grad_x = cast_matmul(grad, weight, None, False)
    if ctx.needs_input_grad[1]:
        grad_weight = flat.t().mm(x.reshape(-1, x.shape[-1])).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = flat.sum(0).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None


cast_matmul.register_autograd(_backward, setup_context=_remember)
