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
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, softcap: float | None, scale: float
) -> Tensor:
    """Return the attended values [b, n_h, s, h_d].

    Args:
        q: [b, n_h, s, h_d].
        k: [b, n_kv, s, h_d].
        v: [b, n_kv, s, h_d].
        block_mask: which keys a query sees.
        softcap: bound that a tanh keeps the scores within.  # arXiv:2408.00118, 2
        scale: factor on the scores, before the bound.
    """
    from torch.nn.attention.flex_attention import flex_attention

    # Within a compiled block it becomes a part of that; alone it would form the score matrix.
    attend = flex_attention if torch.compiler.is_compiling() else _compiled()
    cap = None
    if softcap is not None:

        def cap(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

    out: Tensor = attend(
        q, k, v, score_mod=cap, block_mask=block_mask, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )
    return out


@lru_cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # A second length makes lengths a variable of the kernel, so that a third compiles nothing.
    return torch.compile(flex_attention, fullgraph=True)
