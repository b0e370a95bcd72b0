"""Sizes of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tune.modules.clamped_swiglu import ClampedSwiGLU


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward: each token is sent to a few of many.

    Args:
        num_experts: feed-forwards to choose from.
        experts_per_token: how many of them a token passes through.
        intermediate_dim: width inside one expert.
        normalize_weights: the weights of a token's experts are scaled to add up to one.
        dense_layers: layers that keep the one feed-forward instead, counted from 0.
        shared_intermediate_dim: width inside an expert that every token passes through beside those chosen for it, as
            far as a gate lets it; 0: there is none.
        bias: the router has a bias, and so has every matrix of the experts.
        clamped: how gates open; None: by silu.
        is_beside: the experts stand beside the one feed-forward, which every layer has, each side with norms of its
            own; what they are chosen by is normed and scaled, and so is what each says.
    """

    num_experts: int
    experts_per_token: int
    intermediate_dim: int
    normalize_weights: bool = True
    dense_layers: tuple[int, ...] = ()
    shared_intermediate_dim: int = 0
    bias: bool = False
    clamped: ClampedSwiGLU | None = None
    is_beside: bool = False

    def num_biases(self, embed_dim: int) -> int:
        """Biases of one layer."""
        return self.bias * self.num_experts * (2 * self.intermediate_dim + embed_dim + 1)

    def num_parameters(self, embed_dim: int, num_experts: int) -> int:
        """Parameters of one layer's matrices with its router's, of the experts so many."""
        expert = 3 * embed_dim * self.intermediate_dim
        shared = embed_dim * (3 * self.shared_intermediate_dim + 1) if self.shared_intermediate_dim else 0
        return num_experts * expert + embed_dim * self.num_experts + shared

    def num_other_parameters(self, embed_dim: int) -> int:
        """Parameters of one layer's norms and scales."""
        return 4 * embed_dim + self.num_experts if self.is_beside else 0

    def problems(self) -> Iterator[str]:
        """Yield what no mixture of experts can have."""
        if not 1 <= self.experts_per_token <= self.num_experts:
            yield (
                f"experts_per_token is {self.experts_per_token}; it must be at least 1 and at most "
                f"num_experts {self.num_experts}"
            )
        if self.intermediate_dim < 1:
            yield f"the experts' intermediate_dim is {self.intermediate_dim}; it must be at least 1"
        if self.shared_intermediate_dim < 0:
            yield f"shared_intermediate_dim is {self.shared_intermediate_dim}; it must be at least 0"
        if self.clamped is not None:
            yield from self.clamped.problems()
