"""Causal self-attention with grouped key and value heads.

Shapes: b batch, s sequence, s_kv keys attended to, d width, n_h query heads, n_kv key heads, h_d head width.
"""

from __future__ import annotations

import math
from functools import partial

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
from tune.utils.sharding import init_sharded_

# Of one layer, for later ones: [b, s, n_kv, h_d] each.
KeysValues = tuple[Tensor, Tensor]

# Of a prompt whose score matrix is formed.
_QUERIES_AT_ONCE = 512


class SelfAttention(nn.Module):
    """Attention of each token over itself and what the mask allows of the others.

    Args:
        config: sizes and constants; read are those of heads, biases, norms on queries and keys, and scores.
        index: of which layer, counted from 0.
    """

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        sizes = config.sizes_of(index)
        self.num_heads = config.num_heads
        self.num_kv_heads = sizes.num_kv_heads
        self.head_dim = sizes.head_dim
        self.lends_kv = sizes.lends_kv
        self.attn_dropout = config.attn_dropout
        self.scale = sizes.head_dim**-0.5 if config.attn_scale is None else config.attn_scale
        self.softcap = config.attn_softcap
        self.scale_text = repr(float(self.scale))
        self.softcap_text = None if self.softcap is None else repr(float(self.softcap))
        q_dim, kv_dim = sizes.head_dim * config.num_heads, sizes.head_dim * sizes.num_kv_heads
        has_bias = config.attn_bias in ("qkv", "all")
        self.has_gate = config.attn_gate and not config.attn_gate_apart  # beside each head's queries
        self.q_proj = Linear(config.embed_dim, q_dim * (1 + self.has_gate), bias=has_bias)
        self.gate_proj = (
            Linear(config.embed_dim, q_dim, bias=False)
            if config.attn_gate and config.attn_gate_apart
            else None
        )
        # Without keys it attends to those of an earlier layer; without a matrix for values these are the keys.
        self.k_proj, self.v_proj = (
            Linear(config.embed_dim, kv_dim, bias=has_bias) if is_there else None
            for is_there in (sizes.has_keys, sizes.has_values)
        )
        self.output_proj = Linear(q_dim, config.embed_dim, bias=config.attn_bias in ("out", "all"))
        self.sinks = nn.Parameter(torch.zeros(self.num_heads)) if config.attn_sinks else None
        self.turns_neighbours = config.rotary_pairs == "neighbours"
        self.qk_norm = config.qk_norm
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if self.qk_norm in ("head", "width"):
            widths = (sizes.head_dim,) * 2 if self.qk_norm == "head" else (q_dim, kv_dim)
            self.q_norm, self.k_norm = (
                RMSNorm(width, config.norm_eps, config.norm_offset) if is_there else None
                for width, is_there in zip(widths, (True, sizes.has_keys), strict=True)
            )
        self.norm_eps = config.norm_eps  # of norms without scales
        self.has_v_norm = config.v_norm

    def reset_parameters(self) -> None:
        """Begin sinks anew, where there are any, as the matrices of a decoder begin."""
        if self.sinks is not None:
            init_sharded_(self.sinks, partial(nn.init.normal_, std=0.02))

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...] | None,
        mask: AttentionMask = None,
        cache: LayerCache | None = None,
        lent: KeysValues | None = None,
    ) -> Tensor | tuple[Tensor, KeysValues]:
        """Return the attended values [b, s, d], and where later layers attend to its keys and values, these.

        Args:
            x: [b, s, d].
            rope: cosines and sines of the tokens' positions, fp32, and factors on their queries if there are any. None:
                positions are not used.
            mask: True where a query may see a key, [b, 1, s, s_kv], or what is added to the scores; or documents.
                None: each sees itself and what came before.
            cache: extended by these s tokens; the keys are then every filled slot. Of a layer without keys: that of the
                layer whose keys it attends to, extended already.
            lent: of a layer without keys and without cache, those of that layer.
        """
        b, s, _ = x.shape
        projs = (self.q_proj, self.gate_proj, self.k_proj, self.v_proj)
        q, *projected = linear_together(x, *(proj for proj in projs if proj is not None))
        gate = None
        if self.gate_proj is not None:
            gate, *projected = projected  # [b, s, n_h * h_d]
        if self.has_gate:
            q, gate = q.view(b, s, self.num_heads, 2, self.head_dim).unbind(3)
            q = q.flatten(2)  # [b, s, n_h * h_d]
        q = self._turned(self._normed(q, self.q_norm, self.num_heads), rope)  # [b, s, n_h, h_d]
        if rope is not None and len(rope) > 2:
            q = q * rope[2].to(q.dtype)
        q = q.transpose(1, 2)  # [b, n_h, s, h_d]
        lending = None
        if projected:
            k, v = projected[0], projected[-1]  # [b, s, n_kv * h_d] each
            k = self._turned(self._normed(k, self.k_norm, self.num_kv_heads), rope)  # [b, s, n_kv, h_d]
            v = v.view(b, s, self.num_kv_heads, self.head_dim)
            if self.has_v_norm:
                v = F.rms_norm(v, v.shape[-1:], None, self.norm_eps)
            if self.lends_kv and cache is None:
                lending = k, v  # no views: the compiler would look at what they are views of
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # [b, n_kv, s, h_d] each
            if cache is not None:
                k, v = cache.extend(k, v)  # [b, n_kv, s_kv, h_d] each
        elif cache is not None:
            k, v = cache.filled(q.dtype)  # [b, n_kv, s_kv, h_d] each
        else:
            assert lent is not None, "a layer without keys attends to those of an earlier one"
            k, v = (
                part.view(b, s, self.num_kv_heads, self.head_dim).transpose(1, 2) for part in lent
            )  # [b, n_kv, s, h_d] each
        if isinstance(mask, DocumentMask):
            out = self._attend_documents(q, k, v, mask)
        elif (
            self.softcap is not None or self.sinks is not None or (mask is not None and q.is_cuda and s == 1)
        ):
            out = self._attend_by_products(q, k, v, mask)
        else:
            out = self._attend(q, k, v, mask)
        out = out.transpose(1, 2).reshape(b, s, self.num_heads * self.head_dim)
        if gate is not None:
            out = out * gate.flatten(2).sigmoid()
        attended: Tensor = self.output_proj(out)
        return attended if lending is None else (attended, lending)

    def _normed(self, x: Tensor, norm: RMSNorm | None, num_heads: int) -> Tensor:
        """Return queries or keys [b, s, n, h_d] from [b, s, n * h_d]."""
        if norm is not None and self.qk_norm == "width":
            x = norm(x)
        x = x.view(*x.shape[:2], num_heads, self.head_dim)
        if self.qk_norm == "scaleless":
            return F.rms_norm(x, x.shape[-1:], None, self.norm_eps)
        return norm(x) if norm is not None and self.qk_norm == "head" else x

    def _turned(self, x: Tensor, rope: tuple[Tensor, ...] | None) -> Tensor:
        """Return queries or keys [b, s, n, h_d] turned by their positions, if these are used."""
        return x if rope is None else apply_rotary(x, rope[0], rope[1], neighbours=self.turns_neighbours)

    def _attend_documents(self, q: Tensor, k: Tensor, v: Tensor, mask: DocumentMask) -> Tensor:
        """Return the attended values [b, n_h, s, h_d] of documents that share rows, or see no further than a window."""
        # Autocast, which casts for torch's own attention, knows neither of these.
        q, k = q.to(v.dtype), k.to(v.dtype)
        if mask.block_mask is not None:
            return attend_blocks(q, k, v, mask.block_mask, self.softcap_text, self.scale_text, self.sinks)
        out: Tensor
        out, _ = document_attention(
            q, k, v, mask.document_starts, mask.window, self.softcap, self.scale, self.sinks
        )
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
        """Return the attended values [b, n_h, s, h_d], scores kept within the cap, sinks among them.

        The score matrix is formed: none of torch's fused kernels bounds its scores or knows sinks. For a single
        query with a mask it is small, and those kernels would either copy the keys for each head or use a part of the
        GPU.
        """
        if mask is None and q.shape[2] != 1:
            raise TrainingError("attention by its scores needs its mask given, causal ones as well")
        b, _, s, _ = q.shape
        if mask is not None and s > _QUERIES_AT_ONCE and not torch.is_grad_enabled():
            # A long prompt: nothing is kept of its scores, so some rows of them are there at a time.
            pairs = zip(*(torch.split(part, _QUERIES_AT_ONCE, 2) for part in (q, mask)), strict=True)
            return torch.cat([self._attend_by_products(part, k, v, seen) for part, seen in pairs], 2)
        # Heads that share keys meet them as further rows: the keys are read once and copied never.
        q = q.reshape(b, self.num_kv_heads, -1, self.head_dim)  # [b, n_kv, n_h / n_kv * s, h_d]
        scores = (q @ k.transpose(-1, -2)) * self.scale  # [b, n_kv, n_h / n_kv * s, s_kv]
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap  # arXiv:2408.00118, 2
        if mask is not None:
            scores = scores.view(b, self.num_kv_heads, -1, s, k.shape[2])
            mask = mask[:, :, None]  # [b, 1, 1, s, s_kv]
            is_bias = mask.dtype != torch.bool
            scores = scores + mask if is_bias else scores.masked_fill(~mask, -math.inf)
            scores = scores.flatten(2, 3)
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype).view(self.num_kv_heads, -1, 1).expand(-1, -1, s).flatten(1)
            scores = torch.cat((scores, sinks[:, :, None].expand(*scores.shape[:-1], 1)), -1)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)[..., : k.shape[2]]
        weights = F.dropout(weights, self.attn_dropout, self.training)
        return (weights @ v).view(b, self.num_heads, s, self.head_dim)
