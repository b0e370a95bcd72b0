"""Work of a training step, counted from the sizes. Recomputed activations are never counted."""

from __future__ import annotations

from tune.modules.config import DecoderConfig


def flops_per_token(
    config: DecoderConfig,
    seq_len: float,
    *,
    causal: bool = True,
    num_adapter_parameters: float | None = None,
    has_logits: bool = True,
) -> float:
    """Floating-point operations per token of one forward and backward pass.

    Six per parameter that multiplies the token (arXiv:2204.02311, appendix B), of experts those it is sent to, and
    12 Hq h per layer and key that a query sees: scores and sums are two products of 2 h operations, and the backward
    pass is twice that. A causal query sees S / 2 keys on average. In a layer with a window of W it sees the mean of
    min(i, W) over i up to S, which is S / 2 while S <= W, and W - W^2 / 2S beyond. The usual convention for model
    FLOPs utilisation counts the whole square, S keys (and min(S, W) in a window): `causal=False`.
    A layer with a state counts token by token, however it is computed: by chunks it is more.

    Args:
        config: sizes.
        seq_len: S, tokens per document; with several documents in a row, sum of squares over sum. Beyond a window that
            mean is an upper bound of the work, exact where the documents are equally long.
        causal: count only what is needed of the attention square.
        num_adapter_parameters: of adapters beside frozen matrices: no gradient of those matrices is formed, which
            leaves four operations per parameter of theirs, and six per parameter of the adapters', of experts those of
            the experts that a token is sent to. None: every weight is trained.
        has_logits: each token goes through the output matrix; a reward model has none, and its score's work is nothing.
    """
    head = config.vocab_size * config.embed_dim if has_logits else 0
    num_sliding = len(config.sliding_layers)
    full_dim = config.head_dim if config.full_attention is None else config.full_attention.head_dim
    keys = (config.num_attention_layers - num_sliding) * full_dim * _keys_seen(seq_len, None, causal)
    keys += num_sliding * config.head_dim * _keys_seen(seq_len, config.sliding_window, causal)
    attention = 12 * config.num_heads * keys
    attention += 3 * len(config.delta_layers) * _state_flops(config)
    if config.conv is not None:
        attention += 3 * len(config.conv.layers) * 2 * config.embed_dim * config.conv.width
    matrices = config.num_block_parameters() + head
    if num_adapter_parameters is None:
        return 6 * matrices + attention
    return 4 * matrices + 6 * num_adapter_parameters + attention


def _state_flops(config: DecoderConfig) -> int:
    """Return the operations of a forward pass that a layer with a state makes beside its matrices, per token."""
    if config.delta is None:
        return 0
    # Three products with each state: what it holds for the key, what is written, what is read.  # arXiv:2412.06464
    states = 3 * 2 * config.delta.value_dim * config.delta.key_head_dim
    return states + 2 * config.delta.conv_dim * config.delta.conv_width


def _keys_seen(seq_len: float, window: int | None, causal: bool) -> float:
    """Return how many keys a query sees on average."""
    if window is None or seq_len <= window:
        return seq_len / 2 if causal else seq_len
    return window - window**2 / (2 * seq_len) if causal else float(window)
