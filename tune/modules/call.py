"""What one call of a decoder knows of its tokens: where they stand, what they see, and which text they go on with.

Shapes: b batch, s tokens of the call, s_kv keys attended to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tune.errors import GenerationError
from tune.modules.config import DecoderConfig
from tune.modules.delta_rule import has_fla
from tune.modules.document_mask import AttentionMask, DocumentRuns, check_mask, document_runs, layer_masks
from tune.modules.kv_cache import KVCache
from tune.modules.rope import RotaryEmbedding


@dataclass(frozen=True)
class Call:
    """One call, alone or on caches.

    Attributes:
        positions: of its tokens [b or 1, s].
        slots: where in their rows they stand [b or 1, s].
        num_keys: s_kv.
        text_len: positions of the longest text; None: the positions alone know.
        given_mask: the caller's, bool [b, s, s_kv], which then decides alone.
        causal_mask: where the caches need one, bool [b or 1, s, s_kv].
        documents: positions [b, s] in which each 0 begins a document; None: each row is one text.
        cache: what it goes on from.
    """

    positions: Tensor
    slots: Tensor
    num_keys: int
    text_len: int | None
    given_mask: Tensor | None = None
    causal_mask: Tensor | None = None
    documents: Tensor | None = None
    cache: KVCache | None = None

    @classmethod
    def begin(
        cls,
        cache: KVCache | None,
        tokens: Tensor,
        mask: Tensor | None,
        input_pos: Tensor | None,
        num_tokens: Tensor | None,
    ) -> Call:
        """Return what is known of tokens [b, s]; arguments as in `TransformerDecoder.forward`."""
        if cache is not None:
            positions, causal = cache.place(tokens, input_pos, num_tokens)
            mask = None if mask is None else mask[..., : cache.end]
            text_len = max(cache.num_filled, cache.end)
            call = cls(positions, positions, cache.end, text_len, mask, causal, cache=cache)
        else:
            slots = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)  # [b, s]
            if input_pos is None:
                call = cls(slots[:1], slots, tokens.shape[1], tokens.shape[1], mask)
            else:
                documents = input_pos.expand(tokens.shape)
                call = cls(input_pos, slots, tokens.shape[1], None, mask, documents=documents)
        if mask is not None:
            check_mask(mask, tokens.shape[1], call.num_keys)
        return call

    def outgrows(self, ropes: Iterable[RotaryEmbedding | None]) -> bool:
        """Return whether the text comes to where other rotary frequencies hold for what the caches hold already.

        Raises:
            GenerationError: and it cannot be read anew, for it has a mask.
        """
        cache, text_len = self.cache, self.text_len
        if cache is None or cache.tokens is None or text_len is None:
            return False
        outgrows = any(rope is not None and rope.crosses(cache.num_filled, text_len) for rope in ropes)
        if outgrows and self.given_mask is not None:
            raise GenerationError(
                f"with these tokens the text has {text_len} positions, where other rotary frequencies hold for all of "
                "it, and masks of earlier calls are not kept: give the whole text in one call after reset_caches()"
            )
        return outgrows

    def attention_masks(
        self, config: DecoderConfig, dtype: torch.dtype, *, has_dropout: bool
    ) -> tuple[AttentionMask, AttentionMask]:
        """Return the masks of layers without and with a window; arguments as in `layer_masks`."""
        return layer_masks(
            config,
            self.causal_mask if self.given_mask is None else self.given_mask,
            self.documents,
            self.slots,
            self.num_keys,
            has_cache=self.cache is not None,
            has_dropout=has_dropout,
            dtype=dtype,
        )

    def document_runs(self) -> DocumentRuns | None:
        """Return what layers with a state need to know of documents."""
        firsts = None
        if self.cache is not None and self.cache.rows is not None:
            firsts = self.cache.rows.firsts[:, None].expand(-1, self.positions.shape[1])
        wants_ends = self.positions.is_cuda and has_fla()
        return document_runs(self.given_mask, self.documents, firsts, wants_ends=wants_ends)
