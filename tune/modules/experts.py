"""The matrices of a layer's experts, each kind of them in one stack.

Shapes: n rows, sorted by expert; E experts, i width in, o width out, d width, f width inside an expert.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tune.modules.activation import activate
from tune.modules.clamped_swiglu import ClampedSwiGLU
from tune.modules.expert_bias import add_expert_bias
from tune.modules.grouped_linear import grouped_linear


class ExpertLinear(nn.Module):
    """W_e x + bias_e, with a matrix for each expert.

    Args:
        num_experts: E.
        in_dim: i.
        out_dim: o.
        use_bias: each expert has a bias.
    """

    def __init__(self, num_experts: int, in_dim: int, out_dim: int, use_bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_dim, in_dim))
        if not self.weight.is_meta:
            nn.init.uniform_(self.weight, -1 / math.sqrt(in_dim), 1 / math.sqrt(in_dim))  # as nn.Linear
        self.bias = nn.Parameter(torch.zeros(num_experts, out_dim)) if use_bias else None

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return [n, o] for x [n, i], in x's dtype; `ends` as in `grouped_linear`."""
        return add_expert_bias(grouped_linear(x, ends, self.weight), ends, self.bias)

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        num_experts, out_dim, in_dim = self.weight.shape
        return f"{num_experts} x ({in_dim}, {out_dim}), bias={self.bias is not None}"


class Experts(nn.Module):
    """w2_e(act(w1_e x) * w3_e x) for each row and its expert e.

    Checkpoints name the experts one by one, `experts.3.w1.weight`, or hold them in stacks (`Layout`).

    Args:
        num_experts: E.
        embed_dim: d, width in and out.
        intermediate_dim: f, width between.
        activation: the gate's function.
        bias: every matrix has one.
        clamped: how gates open instead.
    """

    def __init__(
        self,
        num_experts: int,
        embed_dim: int,
        intermediate_dim: int,
        activation: Literal["silu", "gelu_tanh"] = "silu",
        bias: bool = False,
        clamped: ClampedSwiGLU | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.clamped = clamped
        self.w1 = ExpertLinear(num_experts, embed_dim, intermediate_dim, bias)
        self.w2 = ExpertLinear(num_experts, intermediate_dim, embed_dim, bias)
        self.w3 = ExpertLinear(num_experts, embed_dim, intermediate_dim, bias)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return [n, d] for x [n, d]; `ends` as in `grouped_linear`."""
        gate, up = self.w1(x, ends), self.w3(x, ends)
        opened = activate(gate, self.activation) * up if self.clamped is None else self.clamped(gate, up)
        out: Tensor = self.w2(opened, ends)
        return out
