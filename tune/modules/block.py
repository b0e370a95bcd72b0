"""One block of a decoder: attention or what stands in its place, then feed-forward or experts.

Shapes: b batch, s sequence, d width, p width of the block's own input.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tune.modules.attention import KeysValues, SelfAttention
from tune.modules.config import DecoderConfig
from tune.modules.document_mask import AttentionMask, DocumentRuns
from tune.modules.feed_forward import FeedForward
from tune.modules.gated_delta import GatedDeltaNet
from tune.modules.kv_cache import LayerCache
from tune.modules.layer_scale import LayerScale
from tune.modules.moe import MixtureOfExperts
from tune.modules.moe_beside import ExpertsBeside
from tune.modules.norm import RMSNorm
from tune.modules.per_layer_input import PerLayerGate
from tune.modules.short_conv import ShortConv
from tune.modules.state_cache import ConvCache


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each between its norms and added to what came in.

    Args:
        config: sizes of the decoder this block belongs to.
        index: which of its blocks this is, counted from 0.
    """

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.is_sliding = index in config.sliding_layers
        self.has_rope = index not in config.nope_layers
        self.residual_scale = config.residual_scale
        self.residual_dropout = config.residual_dropout
        norms_before = config.norm_placement != "post"
        norms_after = config.norm_placement != "pre"
        self.sa_norm = decoder_norm(config) if norms_before else None
        self.has_state = index in config.state_layers
        self.attn: SelfAttention | GatedDeltaNet | ShortConv
        if config.conv is not None and index in config.conv.layers:
            self.attn = ShortConv(config.embed_dim, config.conv)
        else:
            self.attn = GatedDeltaNet(config) if self.has_state else SelfAttention(config, index)
        self.sa_post_norm = decoder_norm(config, config.post_norm_eps) if norms_after else None
        self.mlp_norm = decoder_norm(config) if norms_before else None
        self.mlp: FeedForward | MixtureOfExperts
        moe = config.moe
        if moe is not None and not moe.is_beside and index not in moe.dense_layers:
            self.mlp = MixtureOfExperts(config.embed_dim, moe, config.activation)
        else:
            width = config.sizes_of(index).intermediate_dim
            self.mlp = FeedForward(config.embed_dim, width, config.activation, config.mlp_bias)
        self.moe = ExpertsBeside(config) if moe is not None and moe.is_beside else None
        self.mlp_post_norm = decoder_norm(config, config.post_norm_eps) if norms_after else None
        self.per_layer = (
            None
            if config.per_layer_input is None
            else PerLayerGate(
                config.embed_dim, config.per_layer_input.dim, config.activation, config.norm_eps
            )
        )
        self.layer_scale = LayerScale() if config.layer_scale else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, ...] | None,
        mask: AttentionMask | DocumentRuns = None,
        cache: LayerCache | ConvCache | None = None,
        lent: KeysValues | None = None,
        given: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, KeysValues]:
        """Return the residual stream [b, s, d] after this block, and with it keys and values for later ones.

        Arguments are those of `SelfAttention.forward`, or of what the block has in its place; `given` is the block's
        own input [b, s, p] in a model that has one for each. What is lent comes and goes as arguments and results,
        which recomputation and FSDP see: their gradients depend on it.
        """
        h = x if self.sa_norm is None else self.sa_norm(x)
        lending = None
        if self.has_state:
            h = self.attn(h, rope, mask, cache)
        else:
            attended = self.attn(h, rope, mask, cache, lent)
            h, lending = attended if isinstance(attended, tuple) else (attended, None)
        x = self._add(x, h if self.sa_post_norm is None else self.sa_post_norm(h))
        h = self.mlp(x if self.mlp_norm is None else self.mlp_norm(x))
        if self.moe is not None:
            h = self.moe.join(x, h)
        x = self._add(x, h if self.mlp_post_norm is None else self.mlp_post_norm(h))
        if self.per_layer is not None:
            x = self.per_layer(x, given)
        if self.layer_scale is not None:
            x = self.layer_scale(x)
        return x if lending is None else (x, lending)

    def _add(self, x: Tensor, h: Tensor) -> Tensor:
        if self.residual_dropout > 0:
            h = F.dropout(h, self.residual_dropout, self.training)
        return x + h if self.residual_scale == 1.0 else x + h * self.residual_scale


def decoder_norm(config: DecoderConfig, eps: float | None = None, offset: float | None = None) -> RMSNorm:
    """Return a norm over the width of a decoder."""
    return RMSNorm(
        config.embed_dim,
        config.norm_eps if eps is None else eps,
        config.norm_offset if offset is None else offset,
    )
