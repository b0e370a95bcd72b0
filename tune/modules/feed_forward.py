"""Gated feed-forward."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x), no biases.  # arXiv:2002.05202, eq. 6 (SwiGLU)

    Args:
        embed_dim: d, width in and out.
        intermediate_dim: width between.
    """

    def __init__(self, embed_dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(embed_dim, intermediate_dim, bias=False)
        self.w2 = nn.Linear(intermediate_dim, embed_dim, bias=False)
        self.w3 = nn.Linear(embed_dim, intermediate_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., d] for x [..., d]."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out
