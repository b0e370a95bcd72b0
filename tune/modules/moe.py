"""A mixture of experts in place of the feed-forward.

Shapes: t tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.config import MoEConfig
from tune.modules.feed_forward import FeedForward


class MixtureOfExperts(nn.Module):
    """Send each token through its k best experts and add up what they say.  # arXiv:2401.04088, 2.1

    No loss that balances the experts is formed: a trained router is fine-tuned with the rest, or frozen.

    Args:
        embed_dim: d, width in and out.
        config: how many experts, how wide, and how many per token.
    """

    def __init__(self, embed_dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.normalize_weights = config.normalize_weights
        self.router = nn.Linear(embed_dim, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            FeedForward(embed_dim, config.intermediate_dim) for _ in range(config.num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., d] for x [..., d]. Waits for the device once, to learn how the tokens are spread."""
        flat = x.reshape(-1, x.shape[-1])  # [t, d]
        probabilities = F.softmax(self.router(flat).float(), dim=-1)  # [t, E]
        weights, chosen = probabilities.topk(self.experts_per_token, dim=-1)  # [t, k] each
        if self.normalize_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        # Pairs of token and expert, sorted by expert, so that each works on one run of rows.
        order = chosen.flatten().argsort(stable=True)  # [t * k]
        rows = order // self.experts_per_token  # [t * k]
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        # An expert without tokens is run on none: its weights then have a gradient, of zeros.
        said = torch.cat(
            [expert(part) for expert, part in zip(self.experts, torch.split(flat[rows], counts))]
        )
        # Back to the tokens by a gather, summed in fixed order: adding rows by index has none on a GPU.
        said = said[order.argsort()].view(*weights.shape, flat.shape[-1])  # [t, k, d]
        return (said * weights[..., None].to(said.dtype)).sum(1).view_as(x)
