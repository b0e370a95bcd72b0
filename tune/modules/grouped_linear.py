"""Many small matrix products as one: each run of rows has a matrix of its own, and nothing waits for a GPU.

Each product is one operator, so that the compiler sees one call whatever the rows' spread is, and can keep no copy of
the matrices in another type for the backward pass.

Shapes: n rows, E matrices, o width out, i width in.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def ends_of_runs(experts: Tensor, num_experts: int) -> Tensor:
    """Return where the rows of each expert end, [E] int32, for the sorted numbers of the rows' experts [n]."""
    numbers = torch.arange(num_experts, device=experts.device)
    return torch.searchsorted(experts, numbers, right=True, out_int32=True)


def grouped_linear(x: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Return [n, o]: the rows of x [n, i] from one end to the next times the matrix of that place, transposed.

    Args:
        x: [n, i].
        ends: where the rows of each matrix end, [E] int32. Beside x, or on the CPU: then a loop is run for sure, and
            does not wait for the device.
        weight: [E, o, i]; it is computed with in x's dtype. A matrix without rows gets a gradient of zeros.
    """
    out: Tensor = grouped_matmul(x, ends, weight, True)
    return out


@torch.library.custom_op("tune::grouped_matmul", mutates_args=())
def grouped_matmul(x: Tensor, ends: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """Return x [n, i] times the transposed matrices [n, o], or x [n, o] times the matrices themselves [n, i]."""
    if len(x) and ends.device == x.device and can_group(x.device, x.dtype, *weight.shape[1:]):
        stack = weight.to(x.dtype)
        grouped: Tensor = _grouped_mm(
            x.contiguous(), stack.transpose(1, 2) if transposed else stack, offs=ends
        )
        return grouped
    out = x.new_empty(len(x), weight.shape[1 if transposed else 2])
    for place, rows in runs_of(ends):
        matrix = weight[place].to(x.dtype)
        torch.mm(x[rows], matrix.t() if transposed else matrix, out=out[rows])
    return out


@grouped_matmul.register_fake
def _matmul_shape(x: Tensor, ends: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1 if transposed else 2])


@torch.library.custom_op("tune::grouped_outer", mutates_args=())
def grouped_outer(grad: Tensor, x: Tensor, ends: Tensor, dtype: torch.dtype) -> Tensor:
    """Return for each run of rows grad^T x, [E, o, i] in `dtype`, of grad [n, o] and x [n, i]."""
    num_matrices, shape = ends.shape[0], (grad.shape[1], x.shape[1])
    if len(x) and ends.device == x.device and can_group(x.device, x.dtype, *shape):
        # Not every GPU's kernel writes what no row reaches (pytorch issue 172439).
        is_idle = ends == F.pad(ends[:-1], (1, 0))
        stack: Tensor = _grouped_mm(grad.contiguous().t(), x.contiguous(), offs=ends)
        return stack.masked_fill_(is_idle[:, None, None], 0.0).to(dtype)
    out = x.new_zeros(num_matrices, *shape, dtype=dtype)
    for place, rows in runs_of(ends):
        out[place] = grad[rows].t().mm(x[rows])
    return out


@grouped_outer.register_fake
def _outer_shape(grad: Tensor, x: Tensor, ends: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1], dtype=dtype)


def runs_of(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the matrices that have rows, and which these are; it waits for the device that `ends` is on."""
    start = 0
    for place, end in enumerate(ends.tolist()):
        if end > start:
            yield place, slice(start, end)
        start = end


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ends, weight, ctx.transposed = inputs
    ctx.save_for_backward(x, ends, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, ends, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = grouped_matmul(grad, ends, weight, not ctx.transposed)
    if ctx.needs_input_grad[2]:
        left, right = (grad, x) if ctx.transposed else (x, grad)
        grad_weight = grouped_outer(left, right, ends, weight.dtype)
    return grad_x, None, grad_weight, None


grouped_matmul.register_autograd(_backward, setup_context=_remember)


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
