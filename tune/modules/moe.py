"""A mixture of experts in place of the feed-forward.

Shapes: t tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.experts import Experts
from tune.modules.feed_forward import FeedForward
from tune.modules.grouped_linear import can_group, ends_of_runs, gather_rows
from tune.modules.moe_config import MoEConfig
from tune.modules.peft.frozen import compute_dtype


class MixtureOfExperts(nn.Module):
    """Send each token through its k best experts and add up what they say.  # arXiv:2401.04088, 2.1

    No loss that balances the experts is formed: a trained router is fine-tuned with the rest, or frozen.

    Args:
        embed_dim: d, width in and out.
        config: how many experts, how wide, and how many per token.
        activation: the gate's function in each.
    """

    def __init__(
        self, embed_dim: int, config: MoEConfig, activation: Literal["silu", "gelu_tanh"] = "silu"
    ) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.experts_per_token = config.experts_per_token
        self.normalize_weights = config.normalize_weights
        self.widths = (embed_dim, config.intermediate_dim)
        self.router = nn.Linear(embed_dim, config.num_experts, bias=config.bias)
        self.experts = Experts(
            config.num_experts, embed_dim, config.intermediate_dim, activation, config.bias, config.clamped
        )
        self.shared = self.shared_gate = None
        if config.shared_intermediate_dim:
            self.shared = FeedForward(embed_dim, config.shared_intermediate_dim, activation)
            self.shared_gate = nn.Linear(embed_dim, 1, bias=False)

    def forward(self, x: Tensor, routed_by: Tensor | None = None) -> Tensor:
        """Return [..., d] for x [..., d]; `routed_by` [..., d] chooses the experts instead."""
        flat = x.reshape(-1, x.shape[-1])  # [t, d]
        telling = flat if routed_by is None else routed_by.reshape(flat.shape)
        probabilities = F.softmax(self.router(telling).float(), dim=-1)  # [t, E]
        weights, chosen = probabilities.topk(self.experts_per_token, dim=-1)  # [t, k] each
        weights = self.weigh(weights, chosen)
        # Pairs of token and expert, sorted by expert, so that each works on one run of rows.
        experts, order = chosen.flatten().sort(stable=True)  # [t * k] each
        inverse = order.argsort()
        dtype = compute_dtype(x)
        ends = ends_of_runs(experts, self.num_experts)
        if not can_group(x.device, dtype, *self.widths):
            ends = ends.cpu()  # the one time that a loop over them waits for the device
        rows = gather_rows(flat, order, inverse, self.experts_per_token).to(dtype)  # [t * k, d]
        said = gather_rows(self.experts(rows, ends), inverse, order)
        said = said.view(*weights.shape, flat.shape[-1])  # [t, k, d]
        out = (said * weights[..., None].to(said.dtype)).sum(1).view_as(x)
        if self.shared is None or self.shared_gate is None:
            return out
        for_all: Tensor = self.shared_gate(x).sigmoid() * self.shared(x)
        return out + for_all

    def weigh(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return what chosen experts are weighed by [t, k], from their probabilities [t, k] and numbers [t, k]."""
        return weights / weights.sum(-1, keepdim=True) if self.normalize_weights else weights
