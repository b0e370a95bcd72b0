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
        offset: added to the stored scale, so that a scale of 1 - offset changes nothing.
    """

    def __init__(self, dim: int, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.scale = nn.Parameter(torch.full((dim,), 1.0 - offset))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed x [..., dim], in x's dtype."""
        if self.offset or x.dtype != self.scale.dtype:
            # In half precision the sum of scale and offset would lose the scale's small digits; and torch has one
            # kernel for x and a scale of one dtype only, and warns before it takes the slow way.
            return F.rms_norm(
                x.float(), self.scale.shape, self.scale.float() + self.offset, self.eps
            ).type_as(x)
        # One kernel on a GPU, with fp32 inside and one rounding at the end, scale included.
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)

    def extra_repr(self) -> str:
        return f"{self.scale.shape[0]}, eps={self.eps}, offset={self.offset}"
