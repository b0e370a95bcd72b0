"""A trained matrix that is kept in one type and multiplies in another.

Shapes: i width in, o width out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune.modules.cast_matmul import cast_matmul
from tune.modules.peft.frozen import compute_dtype, is_autocast
from tune.modules.products import linear


class Linear(nn.Linear):
    """`nn.Linear` of which autocast leaves no copy: the weights are cast for each product, and kept by neither pass.

    torch's own keeps the copies of all weights from the forward pass to the backward pass: two bytes a parameter.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., o] for [..., i], to the bit what `nn.Linear` returns."""
        dtype = compute_dtype(input)
        is_cast = dtype != input.dtype or dtype != self.weight.dtype
        if not is_cast:
            return linear(input, self.weight, self.bias)
        # Without gradients autocast makes one copy for all calls; without autocast torch says what is wrong.
        if not torch.is_grad_enabled() or not is_autocast(input):
            return super().forward(input)
        out: Tensor = cast_matmul(input.to(dtype), self.weight, self.bias, True)
        return out
