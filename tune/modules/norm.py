"""Root-mean-square norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Scale each vector to unit mean square, computed in fp32.  # arXiv:1910.07467, eq. 4

    Args:
        dim: width of the vectors.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed x [..., dim], in x's dtype."""
        # One kernel on a GPU, with fp32 inside and one rounding at the end, scale included.
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)

    def extra_repr(self) -> str:
        return f"{self.scale.shape[0]}, eps={self.eps}"
