"""A mixture of experts beside the feed-forward, instead of in its place.

Shapes: t tokens, d width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.config import DecoderConfig
from tune.modules.moe import MixtureOfExperts
from tune.modules.norm import RMSNorm


class ScaledRouter(nn.Linear):
    """Scores [t, E] of a token by its direction alone, each channel scaled.

    # transformers, models/gemma4/modeling_gemma4.py, Gemma4TextRouter

    Args:
        embed_dim: d.
        num_experts: E.
        norm_eps: added to the mean square in the norm.
    """

    def __init__(self, embed_dim: int, num_experts: int, norm_eps: float) -> None:
        super().__init__(embed_dim, num_experts, bias=False)
        self.norm_eps = norm_eps
        self.scale = nn.Parameter(torch.ones(embed_dim))
        self.per_expert_scale = nn.Parameter(torch.ones(num_experts))  # on what each expert says

    def reset_scales(self) -> None:
        """Begin with ones."""
        nn.init.ones_(self.scale)
        nn.init.ones_(self.per_expert_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Return [t, E] for [t, d]."""
        normed = F.rms_norm(input, input.shape[-1:], None, self.norm_eps)
        return super().forward(normed * self.scale * self.in_features**-0.5)


class ExpertsBeside(MixtureOfExperts):
    """norm(what the feed-forward says) + norm(what experts say of norm(x)), experts that x itself is sent to.

    Args:
        config: of the decoder; read are its `moe`, width, activation and norms.
    """

    def __init__(self, config: DecoderConfig) -> None:
        assert config.moe is not None, "experts are described by `moe`"
        super().__init__(config.embed_dim, config.moe, config.activation)
        self.router = ScaledRouter(config.embed_dim, config.moe.num_experts, config.norm_eps)
        self.mlp_norm, self.input_norm, self.output_norm = (
            RMSNorm(config.embed_dim, config.norm_eps, config.norm_offset) for _ in range(3)
        )

    def join(self, x: Tensor, said: Tensor) -> Tensor:
        """Return [b, s, d] for the residual stream [b, s, d] and what the feed-forward says of it [b, s, d]."""
        out: Tensor = self.mlp_norm(said) + self.output_norm(self(self.input_norm(x), x))
        return out

    def weigh(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights of chosen experts, each scaled by its own number."""
        assert isinstance(self.router, ScaledRouter)
        return super().weigh(weights, chosen) * self.router.per_expert_scale[chosen]
