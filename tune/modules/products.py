"""Matrix products in fp32 on a CPU by the faster of the two libraries that torch has for them.

torch's own choice there is MKL, which does not use all of a processor that is not Intel's; oneDNN, torch's choice in
bf16, does. On an AMD EPYC (Zen 4), one thread, MKL reached 84 to 95 GFLOP/s at the shapes of a 110M model and oneDNN
99 to 104: see benchmarks/README.md. Everywhere else, and for small products, the result is torch's own to the bit.

Shapes: t rows, i width in, o width out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Below these oneDNN's start takes what its product saves; a single row is a matter of reading the matrix.
_ROWS = 16
_PRODUCTS = 6_000_000


def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [t, i] times matrix [i, o], plus bias [o]; where gradients are asked for, by torch's own operators."""
    if _is_faster(x, matrix) and not _wants_grad(x, matrix, bias):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix.t(), bias, "none", [], "")
        return out
    return x.mm(matrix) if bias is None else torch.addmm(bias, x, matrix)


def multiply_add(total: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """Return total [t, o] plus x [t, i] times matrix [i, o]; the total may be overwritten."""
    if _is_faster(x, matrix):
        return total.add_(multiply(x, matrix))
    return total.addmm_(x, matrix)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear` [..., o] of x [..., i] and weight [o, i], with its gradients."""
    if torch.compiler.is_compiling() or not _is_faster(x, weight.t()):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """Keeps what `F.linear` keeps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = multiply(x.reshape(-1, x.shape[-1]), weight.t(), bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, weight.shape[0])  # [t, o]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            multiply(grad, weight).view(ctx.shape) if needs_x else None,
            grad.t().mm(x.reshape(-1, x.shape[-1])) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _is_faster(x: Tensor, matrix: Tensor) -> bool:
    """Return whether oneDNN is the faster one for x [..., i] and matrix [i, o]."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or matrix.dtype != torch.float32:
        return False
    num_rows = x.numel() // max(x.shape[-1], 1)
    return num_rows >= _ROWS and x.numel() * matrix.shape[1] >= _PRODUCTS and _has_guest_mkl()


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@lru_cache(maxsize=1)
def _has_guest_mkl() -> bool:
    """Return whether torch multiplies by MKL on a processor of AMD's, and has oneDNN."""
    if not (torch._C.has_mkl and torch._C._has_mkldnn):
        return False
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in str(capabilities.get("cpu_name")) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
