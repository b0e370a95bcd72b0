"""The decoder that every model family describes with a `DecoderConfig`.

Shapes: b batch, s sequence, s_kv keys attended to, d width, v vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import GenerationError, TrainingError
from tune.modules.attention import SelfAttention
from tune.modules.config import DecoderConfig
from tune.modules.family import Family
from tune.modules.feed_forward import FeedForward
from tune.modules.kv_cache import KVCache, LayerCache
from tune.modules.norm import RMSNorm
from tune.modules.rope import RotaryEmbedding


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each after a norm and added to what came in.

    Args:
        config: sizes of the decoder this block belongs to.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.sa_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attn = SelfAttention(config)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = FeedForward(config.embed_dim, config.intermediate_dim)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the residual stream [b, s, d] after this block; arguments as in `SelfAttention.forward`."""
        x = x + self.attn(self.sa_norm(x), rope, mask, cache)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class TransformerDecoder(nn.Module):
    """Embedding, blocks, final norm and output matrix, with the head kept apart from the trunk.

    `model(tokens)` gives logits. A loss that never wants all logits takes `model.hidden(tokens)` and
    `model.output_weight` instead.

    Args:
        config: sizes and constants.
        family: how this model's weights and configuration are named in files; None: it cannot be saved.
    """

    def __init__(self, config: DecoderConfig, family: Family | None = None) -> None:
        super().__init__()
        self.config = config
        self.family = family
        # `reset_parameters` fills it: drawing normal numbers on the meta device would import torch's compiler.
        self.tok_embeddings: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            torch.empty(config.vocab_size, config.embed_dim), freeze=False
        )
        self.layers = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.output = (
            None if config.tie_word_embeddings else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        )
        self.rope = RotaryEmbedding(config.head_dim, config.rope_base)
        self._cache: KVCache | None = None
        self.reset_parameters()

    @property
    def output_weight(self) -> Tensor:
        """The matrix [v, d] that turns hidden states into logits: the embedding where they are tied."""
        weight: Tensor = self.tok_embeddings.weight if self.output is None else self.output.weight
        return weight

    def forward(
        self, tokens: Tensor, *, mask: Tensor | None = None, input_pos: Tensor | None = None
    ) -> Tensor:
        """Return logits [b, s, v], in the dtype of the matrices.

        Args:
            tokens: token ids [b, s].
            mask: bool [b, s, s_kv], True where a query may see a key; it alone decides, so it must be causal
                itself. None: causal. With caches, s_kv counts slots from position 0, up to this call's last
                position or further.
            input_pos: positions [b, s] or [1, s]; with caches a token's slot as well. None: counted from 0, or
                onwards from what the caches hold.
        """
        return self.unembed(self.hidden(tokens, mask=mask, input_pos=input_pos))

    def hidden(
        self, tokens: Tensor, *, mask: Tensor | None = None, input_pos: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states after the final norm [b, s, d]; arguments as in `forward`."""
        cache = self._cache
        if cache is not None:
            input_pos, causal = cache.place(tokens, input_pos)
            num_keys = cache.end
            mask = causal if mask is None else mask[..., :num_keys]
        else:
            num_keys = tokens.shape[1]
            if input_pos is None:
                input_pos = torch.arange(num_keys, device=tokens.device)[None]  # [1, s]
        if mask is not None:
            mask = _per_head(mask, tokens.shape[1], num_keys)
        rope = self.rope(input_pos)
        x = self.tok_embeddings(tokens)  # [b, s, d]
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.commit()
        out: Tensor = self.norm(x)
        return out

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return logits [..., v] for hidden states [..., d]."""
        return F.linear(hidden, self.output_weight)

    def setup_caches(
        self,
        batch_size: int,
        max_seq_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Keep keys and values from now on: each call continues the text of the calls before.

        Args:
            batch_size: rows of every following call.
            max_seq_len: tokens per row; None: the model's own.
            dtype: what keys and values are kept in; None: the weights' dtype.
            device: None: where the weights are.
        """
        weight = self.tok_embeddings.weight
        self._cache = KVCache(
            num_layers=self.config.num_layers,
            batch_size=batch_size,
            num_kv_heads=self.config.num_kv_heads,
            max_seq_len=self.config.max_seq_len if max_seq_len is None else max_seq_len,
            head_dim=self.config.head_dim,
            dtype=weight.dtype if dtype is None else dtype,
            device=weight.device if device is None else torch.device(device),
        )

    def caches_are_enabled(self) -> bool:
        """Whether calls continue the text of the calls before."""
        return self._cache is not None

    def reset_caches(self) -> None:
        """Begin a new text in the caches that are set up."""
        if self._cache is None:
            raise GenerationError("no caches are set up: call setup_caches(batch_size, max_seq_len) first")
        self._cache.reset()

    def delete_caches(self) -> None:
        """Free the caches: every call stands alone again."""
        self._cache = None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter in place for training from scratch; does nothing on the meta device.

        Normal with deviation 0.02; matrices that add to the residual stream are divided by the root of their
        number, so that its variance does not grow with depth.  # GPT-2 (Radford et al. 2019), 2.3
        Norms start at one.
        """
        if self.tok_embeddings.weight.is_meta:
            return
        std = 0.02
        nn.init.normal_(self.tok_embeddings.weight, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, RMSNorm):
                module.reset_parameters()
        residual_std = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.output_proj.weight", "mlp.w2.weight")):
                nn.init.normal_(parameter, std=residual_std)


def _per_head(mask: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """Return the mask [b, s, s_kv] as [b, 1, s, s_kv], the same for every head."""
    if mask.dtype != torch.bool:
        raise TrainingError(
            f"an attention mask is bool, True where a key may be seen; this one is {mask.dtype}"
        )
    if mask.dim() != 3 or mask.shape[1:] != (num_queries, num_keys):
        raise TrainingError(
            f"the attention mask is {list(mask.shape)}; {num_queries} queries over {num_keys} keys need "
            f"[batch, {num_queries}, {num_keys}]"
        )
    return mask[:, None]
