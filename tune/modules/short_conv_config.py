"""Sizes of layers with a short convolution in place of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ShortConvConfig:
    """Layers that mix each channel with itself a few tokens back, between two gates, in place of attention.

    Args:
        layers: which ones, counted from 0.
        width: tokens that the convolution sees, the newest among them.
        bias: convolution and matrices have biases.
    """

    layers: tuple[int, ...]
    width: int = 3
    bias: bool = False

    def num_matrix_parameters(self, embed_dim: int) -> int:
        """Parameters of one layer's matrices."""
        return 4 * embed_dim**2

    def num_other_parameters(self, embed_dim: int) -> int:
        """Parameters of one layer's convolution, and biases."""
        return embed_dim * (self.width + 5 * self.bias)

    def problems(self) -> Iterator[str]:
        """Yield what no layer can be."""
        if self.width < 1:
            yield f"the convolution's width is {self.width}; it must be at least 1"
