"""A short causal convolution of each channel that does not reach into another document.

Shapes: b batch, s sequence, c channels, w width of the convolution.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


def document_conv(
    x: Tensor,
    weight: Tensor,
    document_starts: Tensor | None = None,
    before: Tensor | None = None,
    activation: Literal["silu", "none"] = "silu",
) -> Tensor:
    """Return silu(sum over j < w of weight[:, w - 1 - j] * x[t - j]) for each token t, [b, s, c] in x's dtype.

    Summed in fp32 at least, and computed again in the backward pass: x alone is kept for it.

    Args:
        x: [b, s, c].
        weight: [c, 1, w], as `nn.Conv1d` has it.
        document_starts: where in these rows each token's document begins [b, s], negative if before them; what stands
            before it counts as zero. None: 0.
        before: the w - 1 tokens before these, [b, w - 1, c]; None: zeros. They get no gradient.
        activation: "none": the sum as it is.
    """
    out: Tensor = _DocumentConv.apply(x, weight, document_starts, before, activation)  # type: ignore[no-untyped-call]
    return out


class _DocumentConv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        document_starts: Tensor | None,
        before: Tensor | None,
        activation: str,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, document_starts, before)
        ctx.activation = activation
        sums = _convolve(x, weight, document_starts, before)
        out = F.silu(sums) if activation == "silu" else sums
        # A cast that does nothing must not end this: the compiler of torch 2.11 then hands on another gradient.
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, document_starts, before = ctx.saved_tensors
        grad = grad.to(_exact(x, weight))
        if ctx.activation == "silu":
            sums = _convolve(x, weight, document_starts, before)
            gate = sums.sigmoid()
            grad = grad * gate * (1 + sums * (1 - gate))  # [b, s, c], of the sums
        width = weight.shape[-1]
        padded, taps = _padded(x, width, before), weight[:, 0].to(grad.dtype)
        grad_padded = torch.zeros_like(padded, dtype=grad.dtype)
        grad_taps = []
        for tap in range(width):
            part = _masked(grad, width - 1 - tap, document_starts)
            grad_taps.append((part * padded[:, tap : tap + x.shape[1]]).sum((0, 1)))
            grad_padded[:, tap : tap + x.shape[1]] += part * taps[:, tap]
        grad_weight = torch.stack(grad_taps, -1)[:, None].to(weight.dtype)
        return grad_padded[:, width - 1 :].to(x.dtype), grad_weight, None, None, None


def _exact(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


def _convolve(x: Tensor, weight: Tensor, document_starts: Tensor | None, before: Tensor | None) -> Tensor:
    """Return the sums before the activation, [b, s, c] in fp32 at least."""
    dtype = _exact(x, weight)
    width = weight.shape[-1]
    padded, taps = _padded(x, width, before), weight[:, 0].to(dtype)
    sums = padded[:, width - 1 :].to(dtype) * taps[:, width - 1]
    for tap in range(width - 1):
        part = padded[:, tap : tap + x.shape[1]].to(dtype) * taps[:, tap]
        sums = sums + _masked(part, width - 1 - tap, document_starts)
    return sums


def _padded(x: Tensor, width: int, before: Tensor | None) -> Tensor:
    """Return x with what stands before it, [b, w - 1 + s, c]."""
    if before is None:
        return F.pad(x, (0, 0, width - 1, 0))
    return torch.cat((before.to(x.dtype), x), 1)


def _masked(part: Tensor, distance: int, document_starts: Tensor | None) -> Tensor:
    """Return the part of each token's sum that comes from so far back, zero where that is another document."""
    if document_starts is None or distance == 0:
        return part
    places = torch.arange(part.shape[1], device=part.device)  # [s]
    return part.masked_fill((places - distance < document_starts)[..., None], 0.0)
