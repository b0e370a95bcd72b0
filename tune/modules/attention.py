"""Causal self-attention with grouped key and value heads.

Shapes: b batch, s sequence, s_kv keys attended to, d width, n_h query heads, n_kv key heads, h_d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import TrainingError
from tune.modules.config import DecoderConfig
from tune.modules.document_mask import AttentionMask, DocumentMask
from tune.modules.kernels.block_attention import attend_blocks
from tune.modules.kernels.document_attention import document_attention
from tune.modules.kv_cache import LayerCache
from tune.modules.linear import Linear
from tune.modules.norm import RMSNorm
from tune.modules.peft.together import linear_together
from tune.modules.rope import apply_rotary


class SelfAttention(nn.Module):
    """Attention of each token over itself and what the mask allows of the others.

    Args:
        config: sizes and constants; read are those of heads, biases, norms on queries and keys, and scores.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.attn_dropout = config.attn_dropout
        self.scale = config.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
        self.softcap = config.attn_softcap
        self.scale_text = repr(float(self.scale))
        self.softcap_text = None if self.softcap is None else repr(float(self.softcap))
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        has_bias = config.attn_bias != "none"
        self.has_gate = config.attn_gate
        self.q_proj = Linear(config.embed_dim, q_dim * (1 + self.has_gate), bias=has_bias)
        self.k_proj = Linear(config.embed_dim, kv_dim, bias=has_bias)
        self.v_proj = Linear(config.embed_dim, kv_dim, bias=has_bias)
        self.output_proj = Linear(q_dim, config.embed_dim, bias=config.attn_bias == "all")
        self.turns_neighbours = config.rotary_pairs == "neighbours"
        self.qk_norm = config.qk_norm
        if self.qk_norm != "none":
            widths = (config.head_dim,) * 2 if self.qk_norm == "head" else (q_dim, kv_dim)
            self.q_norm, self.k_norm = (
                RMSNorm(width, config.norm_eps, config.norm_offset) for width in widths
            )

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...] | None,
        mask: AttentionMask = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values [b, s, d].

        Args:
            x: [b, s, d].
            rope: cosines and sines of the tokens' positions, fp32, and factors on their queries if there are any. None:
                positions are not used.
            mask: True where a query may see a key, [b, 1, s, s_kv], or what is added to the scores; or documents.
                None: each sees itself and what came before.
            cache: extended by these s tokens; the keys are then every filled slot.
        """
        b, s, _ = x.shape
        q, k, v = linear_together(x, self.q_proj, self.k_proj, self.v_proj)
        gate = None
        if self.has_gate:  # beside each head's queries
            q, gate = q.view(b, s, self.num_heads, 2, self.head_dim).unbind(3)
            q = q.flatten(2)  # [b, s, n_h * h_d]
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(b, s, self.num_heads, self.head_dim)
        k = k.view(b, s, self.num_kv_heads, self.head_dim)
        v = v.view(b, s, self.num_kv_heads, self.head_dim)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin, *growth = rope
            q, k = (apply_rotary(x, cos, sin, neighbours=self.turns_neighbours) for x in (q, k))
            if growth:
                q = q * growth[0].to(q.dtype)
        q = q.transpose(1, 2)  # [b, n_h, s, h_d]
        k = k.transpose(1, 2)  # [b, n_kv, s, h_d]
        v = v.transpose(1, 2)  # [b, n_kv, s, h_d]
        if cache is not None:
            k, v = cache.extend(k, v)  # [b, n_kv, s_kv, h_d]
        if isinstance(mask, DocumentMask):
            out = self._attend_documents(q, k, v, mask)
        elif self.softcap is not None or (mask is not None and q.is_cuda and s == 1):
            out = self._attend_by_products(q, k, v, mask)
        else:
            out = self._attend(q, k, v, mask)
        out = out.transpose(1, 2).reshape(b, s, self.num_heads * self.head_dim)
        if gate is not None:
            out = out * gate.flatten(2).sigmoid()
        projected: Tensor = self.output_proj(out)
        return projected

    def _attend_documents(self, q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask) -> Tensor:
        """Return the attended values [b, n_h, s, h_d] of documents that share rows, or see no further than a window."""
        # Autocast, which casts for torch's own attention, knows neither of these.
        q, k = q.to(v.dtype), k.to(v.dtype)
        if mask.block_mask is not None:
            return attend_blocks(q, k, v, mask.block_mask, self.softcap_text, self.scale_text)
        out: Tensor
        out, _ = document_attention(q, k, v, mask.document_starts, mask.window, self.softcap, self.scale)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attended values [b, n_h, s, h_d] by torch's fastest kernel for the case."""
        if mask is not None and q.is_cuda:
            # torch's memory-efficient kernel takes masks or grouped heads; with both, the whole score matrix is formed.
            repeats = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)  # [b, n_h, s_kv, h_d]
        is_causal = False
        # One query over earlier keys sees them all; is_causal would show it the first key only.
        # A branch: where the compiler lets lengths vary, a comparison is no bool, which the operator refuses.
        if mask is None and q.shape[2] == k.shape[2] and q.shape[2] > 1:
            is_causal = True
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,
            enable_gqa=k.shape[1] != self.num_heads,
        )

    def _attend_by_products(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attended values [b, n_h, s, h_d], the scores kept within a cap.  # arXiv:2408.00118, 2

        The whole score matrix is formed: none of torch's fused kernels bounds its scores. For a single query with a
        mask it is small, and those kernels would either copy the keys for each head or use a part of the GPU.
        """
        if mask is None and q.shape[2] != 1:
            raise TrainingError("attention with capped scores needs its mask given, causal ones as well")
        b, _, s, _ = q.shape
        # Heads that share keys meet them as further rows: the keys are read once and copied never.
        q = q.reshape(b, self.num_kv_heads, -1, self.head_dim)  # [b, n_kv, n_h / n_kv * s, h_d]
        scores = (q @ k.transpose(-1, -2)) * self.scale  # [b, n_kv, n_h / n_kv * s, s_kv]
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        if mask is not None:
            scores = scores.view(b, self.num_kv_heads, -1, s, k.shape[2])
            mask = mask[:, :, None]  # [b, 1, 1, s, s_kv]
            is_bias = mask.dtype != torch.bool
            scores = scores + mask if is_bias else scores.masked_fill(~mask, -math.inf)
            scores = scores.flatten(2, 3)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        weights = F.dropout(weights, self.attn_dropout, self.training)
        return (weights @ v).view(b, self.num_heads, s, self.head_dim)
