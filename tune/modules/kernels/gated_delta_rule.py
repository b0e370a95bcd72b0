"""The gated delta rule over whole sequences, by chunks, on any device: a state that forgets, and corrects itself.

One operator, so that `torch.compile` and a tensor without memory see its shapes alone, and so that the backward pass
keeps nothing but what came in: chunks are computed again there, a stretch of them at a time.

Per head, with a state S [d_k, d_v], normed keys k and queries q / sqrt(d_k), decays exp(g) and strengths w:

    S_t = exp(g_t) S_{t-1} + k_t w_t (v_t - exp(g_t) S_{t-1}^T k_t)^T,    o_t = S_t^T q_t    # arXiv:2412.06464, eq. 10

Of a chunk's tokens i >= j, the products of decays from j to i form a matrix G, from the chunk's begin to i a vector c,
and from j to its end a vector e. With A = tril(w K K^T * G, -1), what the tokens write is

    D = (1 + A)^-1 w (V - c K S),    O = c Q S + (Q K^T * G) D,    S' = c_end S + (e K)^T D    # ibid., 3.3

Where a document begins, G, c and e are zero for what crosses its begin: so the state is reset, at no cost.

Shapes: b batch, s sequence, n_k key heads, n_v value heads, r = n_v / n_k, d_k and d_v head widths; m chunks of l
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 64  # tokens
# Of a stretch: what is formed at once. More would take memory that grows with the sequence, fewer costs more calls.
_MAX_CHUNKS = 16
NORM_EPS = 1e-6  # added to the square sum of a key or query, as the kernels of flash-linear-attention do


@torch.library.custom_op("tune::gated_delta_rule", mutates_args=())
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    document_starts: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return what each token reads [b, s, n_v, d_v], in v's dtype, and the state after the last one [b, n_v, d_k, d_v].

    Gradients reach all but `state`, and come from what is read alone.

    Args:
        q: queries [b, s, n_k, d_k]; normed here, and divided by the root of d_k.
        k: keys [b, s, n_k, d_k]; normed here.
        v: values [b, s, n_v, d_v]; each key head serves n_v / n_k consecutive ones.
        log_decay: g [b, s, n_v], at most 0.
        strength: w [b, s, n_v], from 0 to 1.
        document_starts: where in these rows each token's document begins [b, s], negative if before them. None: 0.
        state: from before these tokens; None: zeros.
    """
    with torch.autocast(q.device.type, enabled=False):
        out = v.new_empty(v.shape)
        current = _begin(k, v) if state is None else _grouped_state(state.to(_exact(v)), k.shape[2])
        for piece in _stretches(q, k, v, log_decay, strength, document_starts):
            states, writes, current = _run(piece, current)
            out[:, piece.start : piece.end] = _ungroup(_read(piece, states, writes), piece.end - piece.start)
    return out, current.flatten(1, 2).clone()


@torch.library.custom_op("tune::gated_delta_rule_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    document_starts: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, log_decay, strength)
    grads = tuple(torch.empty_like(tensor) for tensor in inputs)
    with torch.autocast(q.device.type, enabled=False):
        current = _begin(k, v) if state is None else _grouped_state(state.to(_exact(v)), k.shape[2])
        begins = []  # the state before each stretch
        num_stretches = -(-q.shape[1] // (_CHUNK * _MAX_CHUNKS))
        for piece in _stretches(*inputs, document_starts):
            begins.append(current)
            if len(begins) < num_stretches:
                current = _run(piece, current)[2]
        grad_state = torch.zeros_like(current)
        for piece in _stretches(*inputs, document_starts, backwards=True):
            grad_piece = _group(grad[:, piece.start : piece.end], k.shape[2])
            *parts, grad_state = _differentiate_stretch(piece, begins.pop(), grad_piece, grad_state)
            for whole, part in zip(grads, parts, strict=True):
                whole[:, piece.start : piece.end] = part
    return grads  # type: ignore[return-value]  # five of them


def working_bytes(b: int, s: int, num_value_heads: int, key_head_dim: int, value_head_dim: int) -> int:
    """Return about what the backward pass takes for itself while it works, which no tensor of the caller's shows."""
    num_chunks = min(-(-s // _CHUNK), _MAX_CHUNKS) * b * num_value_heads
    # As counted at its fullest: matrices [l, l], vectors like keys and like values, and states.
    per_token = 8 * _CHUNK + 10 * key_head_dim + 12 * value_head_dim
    return 4 * num_chunks * (_CHUNK * per_token + 6 * key_head_dim * value_head_dim)


class _Stretch(NamedTuple):
    """Some chunks, and what of them needs no state. Keys and queries have a 1 in place of r."""

    start: int
    end: int
    q: Tensor  # [b, n_k, 1, m, l, d_k], normed and scaled
    k: Tensor  # [b, n_k, 1, m, l, d_k], normed
    q_scale: Tensor  # what norming multiplied them by, [b, n_k, 1, m, l, 1]
    k_scale: Tensor
    v: Tensor  # [b, n_k, r, m, l, d_v]
    strength: Tensor  # w, [b, n_k, r, m, l, 1]
    decay: Tensor  # G, [b, n_k, r, m, l, l]
    from_begin: Tensor  # c, [b, n_k, r, m, l, 1]
    to_end: Tensor  # e, [b, n_k, r, m, l, 1]
    through: Tensor  # c_end, [b, n_k, r, m, 1, 1]
    similar: Tensor  # K K^T, [b, n_k, 1, m, l, l]
    system: Tensor  # A, [b, n_k, r, m, l, l]
    weights: Tensor  # Q K^T * G, [b, n_k, r, m, l, l]
    forgets: Tensor  # (1 + A)^-1 w c K, [b, n_k, r, m, l, d_k]


def _stretches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    document_starts: Tensor | None,
    *,
    backwards: bool = False,
) -> Iterator[_Stretch]:
    s = q.shape[1]
    starts = list(range(0, s, _CHUNK * _MAX_CHUNKS))
    for start in reversed(starts) if backwards else starts:
        end = min(start + _CHUNK * _MAX_CHUNKS, s)
        cut = slice(start, end)
        begins = None if document_starts is None else document_starts[:, cut] - start
        if document_starts is None and start == 0:
            begins = torch.zeros(q.shape[0], end, dtype=torch.int32, device=q.device)
        yield _prepare(
            start, end, q[:, cut], k[:, cut], v[:, cut], log_decay[:, cut], strength[:, cut], begins
        )


def _prepare(
    start: int,
    end: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    document_starts: Tensor | None,
) -> _Stretch:
    num_key_heads = k.shape[2]
    q, k, v = (_group(tensor, num_key_heads) for tensor in (q, k, v))
    q, q_scale = _normed(q, q.shape[-1] ** -0.5)
    k, k_scale = _normed(k, 1.0)
    strength = _group(strength[..., None], num_key_heads)  # [b, n_k, r, m, l, 1]
    steps = _group(log_decay[..., None], num_key_heads)  # [b, n_k, r, m, l, 1]
    num_chunks, length = k.shape[3:5]
    places = torch.arange(num_chunks * length, device=k.device).view(num_chunks, length)  # [m, l]
    # The sum over what lies between j and i, and not the difference of two sums from the chunk's begin: a decay must
    # not lose digits to what came before its document.
    below = torch.ones(length, length, dtype=torch.bool, device=k.device).tril(-1)
    decay = steps.masked_fill(~below, 0.0).cumsum(-2).exp()  # [b, n_k, r, m, l, l]
    from_begin = steps.cumsum(-2).exp()  # [b, n_k, r, m, l, 1]
    is_seen = below | torch.eye(length, dtype=torch.bool, device=k.device)  # [l, l]
    if document_starts is not None:
        starts = F.pad(document_starts, (0, num_chunks * length - document_starts.shape[1]), value=0)
        starts = torch.where(places.flatten() < end - start, starts, starts[:, end - start - 1 : end - start])
        starts = starts.view(-1, 1, 1, num_chunks, length, 1)
        is_seen = is_seen & (starts <= places[:, None])  # [b, 1, 1, m, l, l]
        from_begin = from_begin.masked_fill(starts >= places[:, :1, None], 0.0)
    decay = decay.masked_fill(~is_seen, 0.0)
    to_end = decay[..., -1, :, None].clone()  # [b, n_k, r, m, l, 1]
    similar = k @ k.transpose(-1, -2)  # [b, n_k, 1, m, l, l]
    system = (strength * similar * decay).tril(-1)
    forgets = torch.linalg.solve_triangular(
        system, strength * from_begin * k, upper=False, unitriangular=True
    )
    return _Stretch(
        start,
        end,
        q,
        k,
        q_scale,
        k_scale,
        v,
        strength,
        decay,
        from_begin,
        to_end,
        from_begin[..., -1:, :].clone(),
        similar,
        system,
        (q @ k.transpose(-1, -2)) * decay,
        forgets,
    )


def _run(piece: _Stretch, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the state before each chunk [b, n_k, r, m, d_k, d_v], what tokens write, and the state after the last."""
    writes = torch.linalg.solve_triangular(
        piece.system, piece.strength * piece.v, upper=False, unitriangular=True
    )  # [b, n_k, r, m, l, d_v]
    keys = (piece.to_end * piece.k).transpose(-1, -2)  # [b, n_k, r, m, d_k, l]
    states = []
    for chunk in range(writes.shape[3]):
        states.append(state)
        own = writes[:, :, :, chunk] - piece.forgets[:, :, :, chunk] @ state  # [b, n_k, r, l, d_v]
        writes[:, :, :, chunk] = own
        state = piece.through[:, :, :, chunk] * state + keys[:, :, :, chunk] @ own
    return torch.stack(states, 3), writes, state


def _read(piece: _Stretch, states: Tensor, writes: Tensor) -> Tensor:
    """Return what each token reads, [b, n_k, r, m, l, d_v]."""
    return (piece.from_begin * piece.q) @ states + piece.weights @ writes


def _differentiate_stretch(
    piece: _Stretch, state: Tensor, grad: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_decay and strength, and of the state before the stretch.

    Args:
        piece: the stretch.
        state: before it.
        grad: of what its tokens read, [b, n_k, r, m, l, d_v].
        grad_state: of the state after it.
    """
    q, k, decay, w = piece.q, piece.k, piece.decay, piece.strength
    states, writes, _ = _run(piece, state)
    grad_writes = piece.weights.transpose(-1, -2) @ grad  # [b, n_k, r, m, l, d_v]
    read_keys = (piece.from_begin * q).transpose(-1, -2)  # [b, n_k, r, m, d_k, l]
    grads_after = torch.empty_like(states)  # of the state after each chunk
    for chunk in reversed(range(states.shape[3])):
        grads_after[:, :, :, chunk] = grad_state
        grad_writes[:, :, :, chunk] += (
            piece.to_end[:, :, :, chunk] * k[:, :, :, chunk]
        ) @ grad_state  # [b, n_k, r, l, d_v]
        grad_state = (
            piece.through[:, :, :, chunk] * grad_state
            + read_keys[:, :, :, chunk] @ grad[:, :, :, chunk]
            - piece.forgets[:, :, :, chunk].transpose(-1, -2) @ grad_writes[:, :, :, chunk]
        )
    # Through (1 + A) D = w (V - c K S).
    grad_right = torch.linalg.solve_triangular(
        piece.system.transpose(-1, -2), grad_writes, upper=True, unitriangular=True
    )  # [b, n_k, r, m, l, d_v]
    grad_system = -(grad_right @ writes.transpose(-1, -2)).tril(-1)  # [b, n_k, r, m, l, l]
    grad_weights = grad @ writes.transpose(-1, -2)
    recalled = k @ states  # K S, [b, n_k, r, m, l, d_v]
    grad_recalled = -w * piece.from_begin * grad_right
    from_writes = writes @ grads_after.transpose(-1, -2)  # [b, n_k, r, m, l, d_k]
    from_grads = grad @ states.transpose(-1, -2)  # [b, n_k, r, m, l, d_k]
    grad_scores = grad_weights * decay
    grad_similar = grad_system * w * decay
    grad_q = piece.from_begin * from_grads + grad_scores @ k
    grad_k = (
        grad_recalled @ states.transpose(-1, -2)
        + (grad_similar + grad_similar.transpose(-1, -2)) @ k
        + grad_scores.transpose(-1, -2) @ q
        + piece.to_end * from_writes
    )
    grad_w = (grad_right * (piece.v - piece.from_begin * recalled)).sum(-1) + (
        grad_system * piece.similar * decay
    ).sum(-1)  # [b, n_k, r, m, l]
    grad_logs = _differentiate_logs(
        between=grad_weights * piece.weights + grad_system * piece.system,
        from_begin=piece.from_begin
        * ((from_grads * q).sum(-1, keepdim=True) - (w * grad_right * recalled).sum(-1, keepdim=True)),
        to_end=piece.to_end * (from_writes * k).sum(-1, keepdim=True),
        through=piece.through * (states * grads_after).sum((-1, -2), keepdim=True),
    )
    count = piece.end - piece.start
    return (
        _ungroup(_differentiate_norm(grad_q, q, piece.q_scale, q.shape[-1] ** -0.5), count),
        _ungroup(_differentiate_norm(grad_k, k, piece.k_scale, 1.0), count),
        _ungroup(w * grad_right, count),
        _ungroup(grad_logs[..., None], count)[..., 0],
        _ungroup(grad_w[..., None], count)[..., 0],
        grad_state,
    )


def _differentiate_logs(between: Tensor, from_begin: Tensor, to_end: Tensor, through: Tensor) -> Tensor:
    """Return the gradient of each token's g, [b, n_k, r, m, l], of those of the logarithms of G, c, e and c_end.

    A token's g is a part of log G[i, j] for j < token <= i, of log c_i for token <= i, and of log e_j for j < token.
    """
    strictly_before = torch.ones(between.shape[-2:], dtype=torch.bool, device=between.device).tril(-1)
    crossing = between.flip(-2).cumsum(-2).flip(-2).masked_fill(~strictly_before, 0.0).sum(-1)
    after = from_begin[..., 0].flip(-1).cumsum(-1).flip(-1)
    before = to_end[..., 0].cumsum(-1) - to_end[..., 0]
    return crossing + after + before + through[..., 0]


def _normed(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return vectors of length `factor`, and what x was multiplied by."""
    scale = (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt() * factor
    return x * scale, scale


def _differentiate_norm(grad: Tensor, normed: Tensor, scale: Tensor, factor: float) -> Tensor:
    grad = grad.sum(2, keepdim=True)  # over the value heads that a key head serves
    return scale * (grad - normed * ((normed * grad).sum(-1, keepdim=True) / factor**2))


def _group(x: Tensor, num_key_heads: int) -> Tensor:
    """Return [b, s, n, d] as [b, n_k, n / n_k, m, l, d] in fp32 at least, filled up with zeros."""
    b, s, n, d = x.shape
    length = min(_CHUNK, s)
    x = F.pad(x.to(_exact(x)), (0, 0, 0, 0, 0, -s % length))
    x = x.view(b, -1, length, num_key_heads, n // num_key_heads, d)  # [b, m, l, n_k, n / n_k, d]
    return x.permute(0, 3, 4, 1, 2, 5).contiguous()


def _ungroup(x: Tensor, count: int) -> Tensor:
    """Return [b, n_k, n / n_k, m, l, d] as [b, s, n, d], the first `count` tokens of it."""
    b, num_key_heads, r, m, length, d = x.shape
    return x.permute(0, 3, 4, 1, 2, 5).reshape(b, m * length, num_key_heads * r, d)[:, :count]


def _grouped_state(state: Tensor, num_key_heads: int) -> Tensor:
    b, _, d_k, d_v = state.shape
    return state.view(b, num_key_heads, -1, d_k, d_v)


def _begin(k: Tensor, v: Tensor) -> Tensor:
    b, _, num_key_heads, d_k = k.shape
    _, _, num_value_heads, d_v = v.shape
    shape = (b, num_key_heads, num_value_heads // num_key_heads, d_k, d_v)
    return torch.zeros(shape, dtype=_exact(v), device=v.device)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@gated_delta_rule.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    b, _, num_value_heads, d_v = v.shape
    return v.new_empty(v.shape), v.new_empty(b, num_value_heads, k.shape[-1], d_v, dtype=_exact(v))


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (q, k, v, log_decay, strength))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors), None, None


gated_delta_rule.register_autograd(_differentiate, setup_context=_remember)
