"""torchtune's layers that are built from modules, under its names and with its arguments.

The families here are built from a `DecoderConfig` instead. These are for layers of one's own: parts of models that
were written for torchtune.

Shapes: b batch, s sequence, s_kv keys attended to, d width, n_h query heads, n_kv key heads, h_d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError, GenerationError
from tune.modules.attention import SelfAttention
from tune.modules.block import DecoderBlock
from tune.modules.decoder import TransformerDecoder
from tune.modules.rope import RotaryEmbedding


class RotaryPositionalEmbeddings(nn.Module):
    """Rotary positions in the interleaved layout: channel 2i turns with channel 2i + 1.  # arXiv:2104.09864, 3.2.2

    Args:
        dim: h_d, all of which turns; even.
        max_seq_len: not needed, since angles are formed for the positions that come.
        base: base of the geometric row of frequencies.
    """

    def __init__(self, dim: int, max_seq_len: int = 4096, base: float = 10_000) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.max_seq_len = max_seq_len
        self.angles = RotaryEmbedding(dim, base)

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        """Return x [b, s, n_h, h_d] turned by its positions [b, s] or [s]; None: counted from 0."""
        if input_pos is None:
            input_pos = torch.arange(x.shape[1], device=x.device)
        cos, sin = self.angles(input_pos.view(-1, x.shape[1]))  # [b or 1, s, 1, h_d / 2]
        first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)  # [b, s, n_h, h_d / 2] each
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.flatten(-2).type_as(x)


class _Counterpart(type):
    """Lets what the decoder has in a class's place count as one of that class, as policies for FSDP ask."""

    def __instancecheck__(cls, instance: object) -> bool:
        ours = cls.__dict__.get("ours", ())  # not a subclass's: nothing here counts as one of those
        return isinstance(instance, ours) or super().__instancecheck__(instance)


class MultiHeadAttention(nn.Module, metaclass=_Counterpart):
    """Attention with grouped heads from matrices that are given. A decoder's `SelfAttention` counts as one, too.

    Args:
        embed_dim: d.
        num_heads: n_h.
        num_kv_heads: n_kv, a divisor of `num_heads`.
        head_dim: h_d.
        q_proj: from d to n_h * h_d.
        k_proj: from d to n_kv * h_d.
        v_proj: as `k_proj`.
        output_proj: from n_h * h_d to d.
        pos_embeddings: called with queries and keys [b, s, n, h_d] and `input_pos`.
        q_norm: of queries [b, n_h, s, h_d], after they were turned.
        k_norm: of keys, likewise; with `q_norm` or not at all.
        kv_cache: refused: a decoder keeps the caches of all its layers.
        max_seq_len: not needed.
        is_causal: what holds where no mask is given.
        attn_dropout: dropout probability on attention weights, in training mode only.

    Raises:
        ConfigError: sizes that do not fit, one norm without the other, or a cache.
    """

    ours = SelfAttention

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        output_proj: nn.Module,
        pos_embeddings: nn.Module | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        kv_cache: None = None,
        max_seq_len: int = 4096,
        is_causal: bool = True,
        attn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads or embed_dim % num_heads:
            raise ConfigError(
                f"num_heads is {num_heads}; it must divide embed_dim {embed_dim}, and num_kv_heads {num_kv_heads} it"
            )
        if not 0 <= attn_dropout <= 1:
            raise ConfigError(f"attn_dropout is {attn_dropout}; it must be from 0 to 1")
        if (q_norm is None) != (k_norm is None):
            raise ConfigError("q_norm and k_norm are given together, or neither is")
        if kv_cache is not None:
            raise ConfigError("kv_cache: the decoder keeps the caches, see tune.modules.local_kv_cache")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.max_seq_len = max_seq_len
        self.is_causal = is_causal
        self.attn_dropout = attn_dropout
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.output_proj = output_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.pos_embeddings = pos_embeddings

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values [b, s, d].

        Args:
            x: what the queries are made of, [b, s, d].
            y: what keys and values are made of, [b, s_kv, d]; x itself for self-attention.
            mask: True where a query may see a key, [b, s, s_kv]; None: causal, unless `is_causal` is false.
            input_pos: positions [b, s]; None: counted from 0.

        Raises:
            ConfigError: y is missing.
        """
        if y is None:
            raise ConfigError("give y, which keys and values are made of: x itself for self-attention")
        q = self._heads(self.q_proj(x), input_pos, self.q_norm)  # [b, n_h, s, h_d]
        k = self._heads(self.k_proj(y), input_pos, self.k_norm)  # [b, n_kv, s_kv, h_d]
        v = self.v_proj(y).view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # [b, n_kv, s_kv, h_d]
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=mask is None and self.is_causal,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        projected: Tensor = self.output_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, projected: Tensor, input_pos: Tensor | None, norm: nn.Module | None) -> Tensor:
        heads = projected.view(*projected.shape[:2], -1, self.head_dim)  # [b, s, n, h_d]
        if self.pos_embeddings is not None:
            heads = self.pos_embeddings(heads, input_pos=input_pos)
        heads = heads.transpose(1, 2)  # [b, n, s, h_d]
        normed: Tensor = heads if norm is None else norm(heads)
        return normed


class TransformerSelfAttentionLayer(nn.Module, metaclass=_Counterpart):
    """Attention, then feed-forward, each after its norm and added to what came in. A `DecoderBlock` counts as one, too.

    Args:
        attn: called with x, x, `mask` and `input_pos`, as `MultiHeadAttention` is.
        mlp: called with [b, s, d].
        sa_norm: before `attn`; None: nothing.
        mlp_norm: before `mlp`.
        sa_scale: on what `attn` adds.
        mlp_scale: on what `mlp` adds.
    """

    ours = DecoderBlock

    def __init__(
        self,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        sa_norm: nn.Module | None = None,
        mlp_norm: nn.Module | None = None,
        sa_scale: nn.Module | None = None,
        mlp_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.sa_norm = sa_norm or nn.Identity()
        self.mlp_norm = mlp_norm or nn.Identity()
        self.sa_scale = sa_scale or nn.Identity()
        self.mlp_scale = mlp_scale or nn.Identity()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, input_pos: Tensor | None = None) -> Tensor:
        """Return the residual stream [b, s, d] after this layer."""
        h = self.sa_norm(x)
        x = x + self.sa_scale(self.attn(h, h, mask=mask, input_pos=input_pos))
        out: Tensor = x + self.mlp_scale(self.mlp(self.mlp_norm(x)))
        return out


def create_block_causal_mask(seq_lens: Sequence[Tensor]) -> Tensor:
    """Return which tokens each may attend to, [b, s, s]: itself and the earlier ones of its own document.

    Args:
        seq_lens: lengths of the documents in each row; each row's add up to s.
    """
    numbers = [torch.arange(len(lens), device=lens.device).repeat_interleave(lens) for lens in seq_lens]
    document = torch.stack(numbers)  # [b, s]
    return (document[:, :, None] == document[:, None]).tril()


@contextmanager
def local_kv_cache(
    model: TransformerDecoder,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    encoder_max_seq_len: int | None = None,
    decoder_max_seq_len: int | None = None,
) -> Iterator[None]:
    """Keep keys and values for as long as the body runs.

    Args:
        model: without caches before, and afterwards.
        batch_size: rows of every call.
        device: where keys and values are kept.
        dtype: what in.
        encoder_max_seq_len: not needed: there are no encoders.
        decoder_max_seq_len: tokens per row; None: the model's own.

    Raises:
        GenerationError: the model has caches already.
    """
    if model.caches_are_enabled():
        raise GenerationError("the model has caches already: model.delete_caches() frees them")
    model.setup_caches(batch_size, decoder_max_seq_len, dtype, device)
    try:
        yield
    finally:
        model.delete_caches()
