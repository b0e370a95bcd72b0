"""Gated feed-forward."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tune.modules.activation import activate_times
from tune.modules.linear import Linear
from tune.modules.peft.together import linear_together


class FeedForward(nn.Module):
    """w2(act(w1 x) * w3 x).  # arXiv:2002.05202, eq. 6 (SwiGLU, GEGLU)

    Args:
        embed_dim: d, width in and out.
        intermediate_dim: width between.
        activation: the gate's function, gelu in its tanh form.
        bias: every matrix has one.
    """

    def __init__(
        self,
        embed_dim: int,
        intermediate_dim: int,
        activation: Literal["silu", "gelu_tanh"] = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.w1 = Linear(embed_dim, intermediate_dim, bias=bias)
        self.w2 = Linear(intermediate_dim, embed_dim, bias=bias)
        self.w3 = Linear(embed_dim, intermediate_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., d] for x [..., d]."""
        gate, up = linear_together(x, self.w1, self.w3)
        out: Tensor = self.w2(activate_times(gate, up, self.activation))
        return out
