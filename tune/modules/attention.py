"""Causal self-attention with grouped key and value heads.

Shapes: b batch, s sequence, s_kv keys attended to, d width, n_h query heads, n_kv key heads, h_d head width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.config import DecoderConfig
from tune.modules.kv_cache import LayerCache
from tune.modules.rope import apply_rotary


class SelfAttention(nn.Module):
    """Attention of each token over itself and what the mask allows of the others.

    Args:
        config: sizes; read are embed_dim, num_heads, num_kv_heads, head_dim, attn_dropout.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.attn_dropout = config.attn_dropout
        self.q_proj = nn.Linear(config.embed_dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.embed_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.embed_dim, config.num_kv_heads * config.head_dim, bias=False)
        self.output_proj = nn.Linear(config.num_heads * config.head_dim, config.embed_dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values [b, s, d].

        Args:
            x: [b, s, d].
            rope: cosines and sines of the tokens' positions, fp32.
            mask: True where a query may see a key, [b, 1, s, s_kv]. None: each sees itself and what came before.
            cache: extended by these s tokens; the keys are then every filled slot.
        """
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(b, s, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(b, s, self.num_kv_heads, self.head_dim)
        q = apply_rotary(q, *rope).transpose(1, 2)  # [b, n_h, s, h_d]
        k = apply_rotary(k, *rope).transpose(1, 2)  # [b, n_kv, s, h_d]
        v = v.transpose(1, 2)  # [b, n_kv, s, h_d]
        if cache is not None:
            k, v = cache.extend(k, v)  # [b, n_kv, s_kv, h_d]
        if mask is not None and q.is_cuda:
            # torch's memory-efficient kernel takes masks or grouped heads; with both, the whole score matrix is formed.
            repeats = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)  # [b, n_h, s_kv, h_d]
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            # One query over earlier keys sees them all; is_causal would show it the first key only.
            is_causal=mask is None and s == k.shape[2] and s > 1,
            enable_gqa=k.shape[1] != self.num_heads,
        )
        out = out.transpose(1, 2).reshape(b, s, self.num_heads * self.head_dim)
        projected: Tensor = self.output_proj(out)
        return projected
