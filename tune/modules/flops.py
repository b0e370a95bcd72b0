"""Work of a training step, counted from the sizes. Recomputed activations are never counted."""

from __future__ import annotations

from tune.modules.config import DecoderConfig


def flops_per_token(config: DecoderConfig, seq_len: float, *, causal: bool = True) -> float:
    """Floating-point operations per token of one forward and backward pass with every weight trained.

    Six per parameter that multiplies the token (arXiv:2204.02311, appendix B), and attention over what a causal
    query sees: 6 L Hq h S. The usual convention for model FLOPs utilisation counts the full square, which is
    `causal=False` and twice that.

    Args:
        config: sizes.
        seq_len: S, tokens per document; with several documents in a row, sum of squares over sum.
        causal: count only the half of the attention square that is needed.
    """
    head = config.vocab_size * config.embed_dim
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * seq_len
    return 6 * (config.num_block_parameters() + head) + attention * (1 if causal else 2)
