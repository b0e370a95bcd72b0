"""Attention within documents that share a row, on a CPU: one small causal problem each, no mask as large as the row.

One operator, so that `torch.compile` and a tensor without memory see its shapes alone: where documents lie differs from
batch to batch.

Shapes: b batch, s sequence, n_h query heads, n_kv key heads, h_d head width; l queries and l_kv keys of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Queries of a sliding window that are taken together: fewer would cost more calls than they save products.
_MIN_WINDOW_QUERIES = 128


class _Piece(NamedTuple):
    """Queries that are attended together, in some rows, and where the keys begin that the first of them may need."""

    rows: slice
    keys_from: int
    start: int
    end: int


@torch.library.custom_op("tune::document_attention", mutates_args=(), device_types="cpu")
def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_starts: Tensor,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the attended values [b, n_h, s, h_d], and the logarithm of each softmax's divisor [b, n_h, s].

    Args:
        q: [b, n_h, s, h_d].
        k: [b, n_kv, s, h_d].
        v: [b, n_kv, s, h_d].
        document_starts: where in its row each token's document begins, [b, s].
        window: keys a query sees, itself among them; None: all up to itself.
        softcap: bound that a tanh keeps the scores within.
        scale: factor on the scores, before the bound.
        sinks: each head's score of a key whose values are zero, [n_h], which every query sees; None: there is none.
    """
    out, log_sums = _allocate(q)
    for piece in _pieces(document_starts, window):
        queries, keys, values = _cut(piece, q), *_cut_keys(piece, k, v)
        bias = _bias(piece, window, q)
        if softcap is None:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries, keys, values, 0.0, bias is None, attn_mask=bias, scale=scale
            )
        else:
            scores = _capped(queries, keys, softcap, scale) * softcap
            scores = scores + (_causal_bias(scores) if bias is None else bias)
            log_sum = scores.logsumexp(-1)  # [b, n_kv, n_h / n_kv, l]
            weights = (scores - log_sum[..., None]).exp().to(q.dtype)
            part, log_sum = (weights @ values[:, :, None]).flatten(1, 2), log_sum.flatten(1, 2)
        _cut(piece, out).copy_(part)
        log_sums[piece.rows, :, piece.start : piece.end] = log_sum
    if sinks is not None:
        divisors = torch.logaddexp(log_sums, sinks.to(log_sums.dtype)[:, None])
        out.mul_((log_sums - divisors).exp_()[..., None])
        log_sums = divisors
    return out, log_sums


@torch.library.custom_op("tune::document_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    document_starts: Tensor,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Where the divisors have their sinks, what follows is right as it stands: a key of zeros adds nothing to it.
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for piece in _pieces(document_starts, window):
        queries, keys, values = _cut(piece, q), *_cut_keys(piece, k, v)
        grad_part, part = _cut(piece, grad), _cut(piece, out)
        log_sum = log_sums[piece.rows, :, piece.start : piece.end]  # [b, n_h, l]
        bias = _bias(piece, window, q)
        if softcap is None:
            saved = (queries, keys, values, part, log_sum)
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_part, *saved, 0.0, bias is None, attn_mask=bias, scale=scale
            )
        else:
            grads = _capped_backward(grad_part, queries, keys, values, part, log_sum, bias, softcap, scale)
        _cut(piece, grad_q).copy_(grads[0])
        # A key within the windows of two pieces gets its gradient from both.
        for whole, own in zip(_cut_keys(piece, grad_k, grad_v), grads[1:], strict=True):
            whole.add_(own)
    return grad_q, grad_k, grad_v, _grad_of_sinks(grad, out, log_sums, sinks)


def _grad_of_sinks(grad: Tensor, out: Tensor, log_sums: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the gradient of the sinks [n_h], [0] where there are none: the mean that `_capped_backward` takes off."""
    if sinks is None:
        return grad.new_empty(0)
    shares = (sinks.to(log_sums.dtype)[:, None] - log_sums).exp()  # [b, n_h, s]
    means = (grad.to(log_sums.dtype) * out).sum(-1)  # [b, n_h, s]
    return -(shares * means).sum((0, 2)).to(sinks.dtype)


def _capped_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    bias: Tensor | None,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    tanh = _capped(q, k, softcap, scale)  # [b, n_kv, n_h / n_kv, l, l_kv]
    scores = tanh * softcap + (_causal_bias(tanh) if bias is None else bias)
    weights = (scores - _by_group(log_sum, k)[..., None]).exp()
    grad_groups, q_groups = _by_group(grad, k), _by_group(q, k)
    grad_v = (weights.to(grad.dtype).transpose(-1, -2) @ grad_groups).sum(2)
    # The softmax's derivative takes the mean over its weights off, which the output holds.  # arXiv:2205.14135, B.4
    mean = (grad_groups.to(weights.dtype) * _by_group(out, k)).sum(-1, keepdim=True)
    grad_scores = weights * ((grad_groups @ v[:, :, None].transpose(-1, -2)).to(weights.dtype) - mean)
    grad_scores = (grad_scores * (1 - tanh.square()) * scale).to(q.dtype)
    grad_k = (grad_scores.transpose(-1, -2) @ q_groups).sum(2)
    return (grad_scores @ k[:, :, None]).flatten(1, 2), grad_k, grad_v


def _capped(q: Tensor, k: Tensor, softcap: float, scale: float) -> Tensor:
    """Return the scores over their bound [b, n_kv, n_h / n_kv, l, l_kv], at least in fp32.  # arXiv:2408.00118, 2"""
    scores = _by_group(q, k) @ k[:, :, None].transpose(-1, -2)
    return (scores.to(_exact(q)) * (scale / softcap)).tanh()


def _by_group(tensor: Tensor, k: Tensor) -> Tensor:
    """Return [b, n_kv, n_h / n_kv, ...] of [b, n_h, ...]: each query head beside those of its key head."""
    b, n_h, *others = tensor.shape
    n_kv = k.shape[1]
    return tensor.reshape(b, n_kv, n_h // n_kv, *others)


def _pieces(document_starts: Tensor, window: int | None) -> Iterator[_Piece]:
    b, s = document_starts.shape
    begins = document_starts == torch.arange(s)
    begins[:, 0] = True
    rows = [(slice(row, row + 1), begins[row].nonzero().flatten().tolist()) for row in range(b)]
    if int(begins.sum()) == b:
        rows = [(slice(0, b), [0])]  # one document a row: all rows at once
    for which, starts in rows:
        for first, end in pairwise([*starts, s]):
            if window is None or end - first <= window:
                yield _Piece(which, first, first, end)
                continue
            step = max(window, _MIN_WINDOW_QUERIES)
            for start in range(first, end, step):
                yield _Piece(which, max(first, start - window + 1), start, min(start + step, end))


def _cut(piece: _Piece, tensor: Tensor) -> Tensor:
    return tensor[piece.rows, :, piece.start : piece.end]


def _cut_keys(piece: _Piece, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[piece.rows, :, piece.keys_from : piece.end] for tensor in tensors)


def _bias(piece: _Piece, window: int | None, q: Tensor) -> Tensor | None:
    """Return 0 where a query of the piece may see a key and -inf elsewhere, [l, l_kv]; None: plainly causal."""
    if window is None or (piece.keys_from == piece.start and piece.end - piece.start <= window):
        return None
    queries = torch.arange(piece.start, piece.end)[:, None]  # [l, 1]
    keys = torch.arange(piece.keys_from, piece.end)  # [l_kv]
    seen = (keys <= queries) & (keys > queries - window)
    return torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)


def _causal_bias(scores: Tensor) -> Tensor:
    return torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu_(1)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _allocate(q: Tensor) -> tuple[Tensor, Tensor]:
    b, n_h, s, h_d = q.shape
    # Laid out as what follows reads it, head after head of one token.
    return q.new_empty(b, s, n_h, h_d).transpose(1, 2), q.new_empty(b, n_h, s, dtype=_exact(q))


@document_attention.register_fake
def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_starts: Tensor,
    window: int | None,
    softcap: float | None,
    scale: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _allocate(q)


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sinks = others[-1]
    of_sinks = grad.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), of_sinks


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, document_starts, *ctx.settings, sinks = inputs
    ctx.save_for_backward(q, k, v, *output, document_starts, sinks)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, sinks = ctx.saved_tensors
    *grads, of_sinks = _backward(grad, *tensors, *ctx.settings, sinks)
    return *grads, None, None, None, None, None if sinks is None else of_sinks


document_attention.register_autograd(_differentiate, setup_context=_remember)
