"""Attention within documents that share a row, on a GPU: FlexAttention, compiled once.  # arXiv:2412.05496

Shapes: b batch, s sequence, n_h query heads, n_kv key heads, h_d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    softcap: str | None,
    scale: str,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return the attended values [b, n_h, s, h_d].

    The two numbers come as text: torch.compile may make a variable of a float, which no kernel of FlexAttention has
    room for, and never of a text.

    Args:
        q: [b, n_h, s, h_d].
        k: [b, n_kv, s, h_d].
        v: [b, n_kv, s, h_d].
        block_mask: which keys a query sees.
        softcap: bound that a tanh keeps the scores within.  # arXiv:2408.00118, 2
        scale: factor on the scores, before the bound.
        sinks: each head's score of a key whose values are zero, [n_h], which every query sees; None: there is none.
    """
    # Within a compiled block it becomes a part of that; alone, uncompiled, it would form the score matrix.
    attend = _attend if torch.compiler.is_compiling() else _compiled()
    out: Tensor = attend(q, k, v, block_mask, softcap, scale, sinks)
    return out


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    softcap: str | None,
    scale: str,
    sinks: Tensor | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    cap_scores = None
    if softcap is not None:
        cap = float(softcap)

        def cap_scores(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return cap * torch.tanh(score / cap)

    is_grouped = k.shape[1] != q.shape[1]
    out: Tensor
    if sinks is None:
        out = flex_attention(q, k, v, cap_scores, block_mask, float(scale), is_grouped)
        return out
    wants = AuxRequest(lse=True)
    out, aux = flex_attention(q, k, v, cap_scores, block_mask, float(scale), is_grouped, return_aux=wants)
    assert aux.lse is not None
    return scale_by_sinks(out, aux.lse, sinks)


def scale_by_sinks(out: Tensor, log_sums: Tensor, sinks: Tensor) -> Tensor:
    """Return the attended values [b, n_h, s, h_d] with the sinks' share of the weights taken off.

    Args:
        out: [b, n_h, s, h_d], without sinks.
        log_sums: logarithm of each softmax's divisor [b, n_h, s]; a gradient reaches the scores through it.
        sinks: [n_h].
    """
    shares = torch.sigmoid(log_sums - sinks.to(log_sums.dtype)[:, None])
    return (out * shares[..., None]).to(out.dtype)


@lru_cache
def _compiled() -> Callable[..., Any]:
    # A second length makes lengths variables of the kernel, so that a third compiles nothing.
    return torch.compile(_attend, fullgraph=True)
