"""A layer that sees a few tokens instead of attending: a short convolution between two gates.  # arXiv:2511.23404, 2

Shapes: b batch, s sequence, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune.modules.document_mask import DocumentRuns
from tune.modules.kernels.document_conv import document_conv
from tune.modules.linear import Linear
from tune.modules.short_conv_config import ShortConvConfig
from tune.modules.state_cache import ConvCache
from tune.utils.sharding import init_sharded_


class ShortConv(nn.Module):
    """What each token makes of itself and the few before it in its document: C * conv(B * x).

    Args:
        embed_dim: d.
        config: width of the convolution, and whether there are biases.
    """

    def __init__(self, embed_dim: int, config: ShortConvConfig) -> None:
        super().__init__()
        self.in_proj = Linear(embed_dim, 3 * embed_dim, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(embed_dim, 1, config.width))
        self.conv_bias = nn.Parameter(torch.empty(embed_dim)) if config.bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...] | None = None,
        documents: DocumentRuns | None = None,
        cache: ConvCache | None = None,
    ) -> Tensor:
        """Return [b, s, d].

        Args:
            x: [b, s, d].
            rope: not used; a convolution knows no positions.
            documents: where those begin that share these rows; None: each row is one, and begins here.
            cache: goes on from what it holds, and then holds the last of these tokens.
        """
        entering, leaving, inside = self.in_proj(x).chunk(3, -1)  # [b, s, d] each
        mixed = entering * inside
        starts = None if documents is None else documents.starts
        before = None if cache is None else cache.extend(mixed)
        mixed = document_conv(mixed, self.conv_weight, starts, before, activation="none")
        if self.conv_bias is not None:
            mixed = mixed + self.conv_bias
        out: Tensor = self.out_proj(leaving * mixed)
        return out

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the convolution in place, as `nn.Conv1d`."""
        bound = self.conv_weight.shape[-1] ** -0.5
        for weight in (self.conv_weight, self.conv_bias):
            if weight is not None:
                init_sharded_(weight, lambda part: nn.init.uniform_(part, -bound, bound))
