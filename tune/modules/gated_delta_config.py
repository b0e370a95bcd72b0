"""Sizes of layers that keep a state by the gated delta rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class GatedDeltaConfig:
    """Layers with a state that forgets and corrects itself, in place of attention.  # arXiv:2412.06464

    Args:
        layers: which ones, counted from 0.
        num_key_heads: heads of keys and of queries.
        num_value_heads: heads of values, and states; a multiple of `num_key_heads`.
        key_head_dim: width of a head of keys.
        value_head_dim: width of a head of values.
        conv_width: tokens that the convolution before them sees, the newest among them.
    """

    layers: tuple[int, ...]
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_width: int = 4

    @property
    def conv_dim(self) -> int:
        """Channels of queries, keys and values together."""
        return 2 * self.num_key_heads * self.key_head_dim + self.value_dim

    @property
    def value_dim(self) -> int:
        """Channels of all values."""
        return self.num_value_heads * self.value_head_dim

    def num_matrix_parameters(self, embed_dim: int) -> int:
        """Parameters of one layer's matrices."""
        return embed_dim * (self.conv_dim + 2 * self.value_dim + 2 * self.num_value_heads)

    def num_other_parameters(self) -> int:
        """Parameters of one layer's convolution, gates and norm."""
        return self.conv_dim * self.conv_width + 2 * self.num_value_heads + self.value_head_dim

    def problems(self) -> Iterator[str]:
        """Yield what no layer can be."""
        sizes = {name: value for name, value in vars(self).items() if name != "layers"}
        too_small = [f"{name} is {size}; it must be at least 1" for name, size in sizes.items() if size < 1]
        yield from too_small
        if not too_small and self.num_value_heads % self.num_key_heads:
            yield f"num_value_heads is {self.num_value_heads}, not a multiple of num_key_heads {self.num_key_heads}"
