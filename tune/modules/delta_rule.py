"""Which kernel runs the gated delta rule: flash-linear-attention's on a GPU where it is installed, or else ours.

Shapes: b batch, s sequence, n_k key heads, n_v value heads, d_k and d_v head widths.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tune.modules.document_mask import DocumentRuns
from tune.modules.kernels.gated_delta_rule import NORM_EPS, gated_delta_rule
from tune.modules.state_cache import StateCache

# Of what its kernels were written for; wider heads take ours.
_MAX_HEAD_DIM = 256


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    documents: DocumentRuns | None = None,
    cache: StateCache | None = None,
) -> Tensor:
    """Return what each token reads [b, s, n_v, d_v]; arguments as in `gated_delta_rule`."""
    if cache is not None:
        log_decay, strength = cache.without_pads(log_decay), cache.without_pads(strength)
        if q.shape[1] == 1:
            return _one_token(q, k, v, log_decay, strength, documents, cache.state)
    elif (
        q.is_cuda
        and has_fla()
        and max(q.shape[-1], v.shape[-1]) <= _MAX_HEAD_DIM
        and (documents is None or documents.ends is not None)
    ):
        return fla_delta_rule(q, k, v, log_decay, strength, documents)
    starts = None if documents is None else documents.starts
    state = None if cache is None else cache.state
    out: Tensor
    out, state = gated_delta_rule(q, k, v, log_decay, strength, starts, state)
    if cache is not None:
        cache.state.copy_(state)
    return out


def _one_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    documents: DocumentRuns | None,
    state: Tensor,
) -> Tensor:
    """Return what the one token reads [b, 1, n_v, d_v], and bring the state up to it.  # arXiv:2412.06464, eq. 10"""
    repeats = v.shape[2] // k.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        q, k = (
            _normed(x[:, 0].to(state.dtype)).repeat_interleave(repeats, 1) for x in (q, k)
        )  # [b, n_v, d_k]
        decay, strength = (
            x[:, 0, :, None].to(state.dtype) for x in (log_decay.exp(), strength)
        )  # [b, n_v, 1]
        if documents is not None:
            state.masked_fill_((documents.starts[:, 0] == 0)[:, None, None, None], 0.0)
        state.mul_(decay[..., None])
        recalled = (k[:, :, None] @ state)[:, :, 0]  # [b, n_v, d_v]
        writes = strength * (v[:, 0].to(state.dtype) - recalled)
        state.add_(k[..., None] * writes[:, :, None])
        read: Tensor = (q[:, :, None] @ state) * float(q.shape[-1] ** -0.5)  # [b, n_v, 1, d_v]
    return read.transpose(1, 2).to(v.dtype)


def _normed(x: Tensor) -> Tensor:
    scale: Tensor = (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()
    return x * scale


def fla_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, documents: DocumentRuns | None
) -> Tensor:
    """Return the same by flash-linear-attention; rows are laid end to end where documents share them."""
    b, s, _, _ = q.shape
    repeats = v.shape[2] // k.shape[2]
    if repeats > 1:  # its chunked kernels have not always known grouped heads
        q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    inputs = [q.to(v.dtype), k.to(v.dtype), v, log_decay.float(), strength.float()]
    ends = None
    if documents is not None:
        inputs = [tensor.reshape(1, b * s, *tensor.shape[2:]) for tensor in inputs]
        ends = documents.ends
    out: Tensor
    out, _ = _fla_kernel()(*inputs, use_qk_l2norm_in_kernel=True, cu_seqlens=ends)
    return out.view_as(v)


@lru_cache(maxsize=1)
def has_fla() -> bool:
    """Return whether flash-linear-attention is installed, without importing it."""
    return importlib.util.find_spec("fla") is not None


@lru_cache(maxsize=1)
def _fla_kernel() -> Callable[..., Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # type: ignore[import-not-found]

    kernel: Callable[..., Any] = chunk_gated_delta_rule
    return kernel
