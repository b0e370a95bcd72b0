"""The one description of a decoder: everything that decides its numbers, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tune.errors import ConfigError

# A stranger's file must not make us build modules without end.
_MAX_LAYERS = 1_000
_MAX_PARAMETERS = 10**14


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder-only transformer.

    Args:
        vocab_size: rows of the embedding and of the output matrix.
        num_layers: blocks.
        num_heads: query heads per block.
        num_kv_heads: key and value heads per block; a divisor of `num_heads`.
        embed_dim: width of the residual stream.
        head_dim: width of one head; even, because rotary positions turn pairs.
        intermediate_dim: width inside the feed-forward.
        max_seq_len: positions the model was trained for; generation and data stop there, the layers do not.
        norm_eps: added to the mean square in every norm.
        rope_base: base of the rotary frequencies.
        tie_word_embeddings: the output matrix is the embedding matrix.
        attn_dropout: dropout probability on attention weights, in training mode only.

    Raises:
        ConfigError: sizes that no decoder can have; every such problem is listed.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    embed_dim: int
    head_dim: int
    intermediate_dim: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    tie_word_embeddings: bool = False
    attn_dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = {
            "vocab_size": self.vocab_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "embed_dim": self.embed_dim,
            "head_dim": self.head_dim,
            "intermediate_dim": self.intermediate_dim,
            "max_seq_len": self.max_seq_len,
        }
        problems = [f"{name} is {size}; it must be at least 1" for name, size in sizes.items() if size < 1]
        if not problems and self.num_heads % self.num_kv_heads:
            problems.append(
                f"num_heads is {self.num_heads}, not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}; rotary positions need an even one")
        if self.num_layers > _MAX_LAYERS:
            problems.append(f"num_layers is {self.num_layers}; more than {_MAX_LAYERS} are not built")
        # Written so that NaN fails as well.
        if not 0 <= self.norm_eps < 1:
            problems.append(f"norm_eps is {self.norm_eps}; it must be at least 0 and below 1")
        if not 0 < self.rope_base < math.inf:
            problems.append(f"rope_base is {self.rope_base}; it must be above 0 and finite")
        if not 0 <= self.attn_dropout < 1:
            problems.append(f"attn_dropout is {self.attn_dropout}; it must be at least 0 and below 1")
        if not problems and self.num_parameters() > _MAX_PARAMETERS:
            problems.append(f"they make {self.num_parameters():.3g} parameters; one of them must be wrong")
        if problems:
            raise ConfigError("no decoder has these sizes:\n  " + "\n  ".join(problems))

    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied output matrix is counted once."""
        embedding = self.vocab_size * self.embed_dim
        norms = (2 * self.num_layers + 1) * self.embed_dim
        head = 0 if self.tie_word_embeddings else embedding
        return embedding + self.num_block_parameters() + norms + head

    def num_block_parameters(self) -> int:
        """Parameters of the matrices inside all blocks: those that multiply every token."""
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.embed_dim * self.intermediate_dim
        return self.num_layers * (attention + feed_forward)
