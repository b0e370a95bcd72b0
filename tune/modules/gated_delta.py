"""A layer that keeps a state of one size instead of attending: Gated DeltaNet.  # arXiv:2412.06464

Shapes: b batch, s sequence, d width, n_k key heads, n_v value heads, d_k and d_v their widths; c channels of queries,
keys and values together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.config import DecoderConfig
from tune.modules.delta_rule import delta_rule
from tune.modules.document_mask import DocumentRuns
from tune.modules.kernels.document_conv import document_conv
from tune.modules.linear import Linear
from tune.modules.norm import RMSNorm
from tune.modules.state_cache import StateCache
from tune.utils.sharding import init_sharded_


class GatedDeltaNet(nn.Module):
    """What each token reads from the state that it and the earlier ones of its document have written.

    Args:
        config: sizes and constants; read are those of `delta`, the width and the norms' eps.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        assert config.delta is not None, "a layer of this kind is described by `delta`"
        delta = config.delta
        self.num_key_heads, self.num_value_heads = delta.num_key_heads, delta.num_value_heads
        self.key_head_dim, self.value_head_dim = delta.key_head_dim, delta.value_head_dim
        self.in_proj_qkv = Linear(config.embed_dim, delta.conv_dim, bias=False)
        self.in_proj_z = Linear(config.embed_dim, delta.value_dim, bias=False)
        self.in_proj_b = Linear(config.embed_dim, delta.num_value_heads, bias=False)
        self.in_proj_a = Linear(config.embed_dim, delta.num_value_heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(delta.conv_dim, 1, delta.conv_width))
        self.a_log = nn.Parameter(torch.empty(delta.num_value_heads))
        self.dt_bias = nn.Parameter(torch.empty(delta.num_value_heads))
        self.norm = RMSNorm(delta.value_head_dim, config.norm_eps)
        self.out_proj = Linear(delta.value_dim, config.embed_dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...] | None = None,
        documents: DocumentRuns | None = None,
        cache: StateCache | None = None,
    ) -> Tensor:
        """Return what is read, [b, s, d].

        Args:
            x: [b, s, d].
            rope: not used; a state knows no positions.
            documents: where those begin that share these rows; None: each row is one, and begins here.
            cache: goes on from what it holds, and then holds what these tokens have made of it.
        """
        b, s, _ = x.shape
        mixed = self.in_proj_qkv(x)  # [b, s, c]
        gate, strength, step = self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)
        starts = None if documents is None else documents.starts
        before = None if cache is None else cache.extend(mixed)
        mixed = document_conv(mixed, self.conv_weight, starts, before)
        key_dim = self.num_key_heads * self.key_head_dim
        q, k, v = torch.split(mixed, [key_dim, key_dim, self.num_value_heads * self.value_head_dim], -1)
        # How fast each head forgets: exp(-A dt).  # arXiv:2312.00752, 3.5.2 and arXiv:2412.06464, 3.4
        exact = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(step.to(exact) + self.dt_bias.to(exact))
        log_decay = -self.a_log.to(exact).exp() * step  # [b, s, n_v]
        out = delta_rule(
            q.view(b, s, self.num_key_heads, self.key_head_dim),
            k.view(b, s, self.num_key_heads, self.key_head_dim),
            v.view(b, s, self.num_value_heads, self.value_head_dim),
            log_decay,
            strength.to(exact).sigmoid(),  # [b, s, n_v]
            documents,
            cache,
        )  # [b, s, n_v, d_v]
        out = (self.norm(out.to(exact)) * F.silu(gate.view_as(out).to(exact))).to(x.dtype)
        read: Tensor = self.out_proj(out.flatten(2))
        return read

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise in place what is no matrix: as `nn.Conv1d`, a step of one, and A uniform up to 16."""
        bound = self.conv_weight.shape[-1] ** -0.5
        init_sharded_(self.conv_weight, lambda weight: nn.init.uniform_(weight, -bound, bound))
        nn.init.ones_(self.dt_bias)
        # Away from 0, whose logarithm is infinite.
        init_sharded_(self.a_log, lambda weight: weight.uniform_(0.01, 16.0).log_())
