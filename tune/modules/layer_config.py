"""What a decoder's layers may have otherwise than the ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class FullAttentionConfig:
    """Heads of the layers without a window, where those with one have others.

    Args:
        head_dim: width of one head.
        num_kv_heads: key and value heads; a divisor of the query heads.
        keys_as_values: a token's values are its keys, before these are normed and turned: there is no matrix for them.
    """

    head_dim: int
    num_kv_heads: int
    keys_as_values: bool = False


@dataclass(frozen=True)
class SharedKVConfig:
    """Layers without keys and values of their own: they attend to those of an earlier layer.

    That is the last one before them that has a window where they have one, or none where they have none.

    Args:
        num_layers: how many of the last layers.
        intermediate_dim: width inside their feed-forward.
    """

    num_layers: int
    intermediate_dim: int


@dataclass(frozen=True)
class PerLayerInputConfig:
    """A second embedding that gives every layer an input of its own for each token.

    Args:
        vocab_size: rows of its table.
        dim: width of one layer's input.
    """

    vocab_size: int
    dim: int

    def num_matrix_parameters(self, embed_dim: int, num_layers: int) -> int:
        """Parameters of all matrices that multiply a token."""
        return 3 * embed_dim * self.dim * num_layers

    def num_other_parameters(self, embed_dim: int, num_layers: int) -> int:
        """Parameters of the table and of all norms."""
        return self.vocab_size * self.dim * num_layers + self.dim + embed_dim * num_layers

    def problems(self, vocab_size: int) -> Iterator[str]:
        """Yield what no decoder with so many tokens can have."""
        if self.dim < 1:
            yield f"per_layer_input.dim is {self.dim}; it must be at least 1"
        if self.vocab_size < vocab_size:
            yield f"per_layer_input.vocab_size is {self.vocab_size}, and there are {vocab_size} tokens"


class LayerSizes(NamedTuple):
    """Sizes of one layer.

    Attributes:
        head_dim, num_kv_heads: of its attention.
        intermediate_dim: width inside its feed-forward.
        has_keys: it has keys of its own, and values.
        has_values: it has a matrix for its values.
        lends_kv: later layers attend to its keys and values.
    """

    head_dim: int
    num_kv_heads: int
    intermediate_dim: int
    has_keys: bool = True
    has_values: bool = True
    lends_kv: bool = False
