"""A mixture of experts in place of the feed-forward.

Shapes: t tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.config import MoEConfig
from tune.modules.feed_forward import FeedForward
from tune.modules.grouped_linear import can_group, gather_rows, grouped_linear


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
        """Return [..., d] for x [..., d]."""
        flat = x.reshape(-1, x.shape[-1])  # [t, d]
        probabilities = F.softmax(self.router(flat).float(), dim=-1)  # [t, E]
        weights, chosen = probabilities.topk(self.experts_per_token, dim=-1)  # [t, k] each
        if self.normalize_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        # Pairs of token and expert, sorted by expert, so that each works on one run of rows.
        experts, order = chosen.flatten().sort(stable=True)  # [t * k] each
        inverse = order.argsort()
        rows = gather_rows(flat, order, inverse, self.experts_per_token)  # [t * k, d]
        said = self._grouped(rows, experts) if self._can_group(rows) else self.run_one_by_one(rows, experts)
        said = gather_rows(said, inverse, order).view(*weights.shape, flat.shape[-1])  # [t, k, d]
        return (said * weights[..., None].to(said.dtype)).sum(1).view_as(x)

    def _can_group(self, rows: Tensor) -> bool:
        first = self.experts[0].w1
        if not rows.is_cuda or not isinstance(first, nn.Linear):  # in 4 bits it is none
            return False
        return can_group(rows.device, _compute_dtype(rows), *first.weight.shape)

    def _grouped(self, rows: Tensor, experts: Tensor) -> Tensor:
        """Return what each row's expert says, [t * k, d], for rows sorted by expert."""
        numbers = torch.arange(len(self.experts), device=rows.device)
        ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)  # [E]
        w1, w2, w3 = (
            [getattr(expert, name).weight for expert in self.experts] for name in ("w1", "w2", "w3")
        )
        rows = rows.to(_compute_dtype(rows))
        between = F.silu(grouped_linear(rows, ends, w1)) * grouped_linear(rows, ends, w3)
        return grouped_linear(between, ends, w2)

    def run_one_by_one(self, rows: Tensor, experts: Tensor) -> Tensor:
        """Return the same by a loop; it waits for the device, to learn how the rows are spread."""
        counts = experts.bincount(minlength=len(self.experts)).tolist()
        # An expert without tokens is run on none: its weights then have a gradient, of zeros.
        return torch.cat([expert(part) for expert, part in zip(self.experts, torch.split(rows, counts))])


def _compute_dtype(x: Tensor) -> torch.dtype:
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
