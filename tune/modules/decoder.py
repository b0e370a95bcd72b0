"""The decoder that every model family describes with a `DecoderConfig`.

Shapes: b batch, s sequence, s_kv keys attended to, d width, v vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import GenerationError
from tune.modules.attention import KeysValues
from tune.modules.block import DecoderBlock, decoder_norm
from tune.modules.call import Call
from tune.modules.config import DecoderConfig
from tune.modules.family import Family
from tune.modules.init_weights import init_weights_
from tune.modules.kv_cache import KVCache
from tune.modules.peft.frozen import compute_dtype
from tune.modules.peft.lora import LoRALinear
from tune.modules.peft.token_rows import TokenRowsEmbedding, TokenRowsLinear
from tune.modules.per_layer_input import PerLayerInput
from tune.modules.rope import RotaryEmbedding


class TransformerDecoder(nn.Module):
    """Embedding, blocks, final norm and output matrix, with the head kept apart from the trunk.

    `model(tokens)` gives logits; of a reward model, the score of the text up to each token. A loss that never wants all
    logits takes `model.hidden(tokens)` and `model.output_weight` instead.

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
        self.per_layer_input = (
            None
            if config.per_layer_input is None
            else PerLayerInput(config.per_layer_input, config.num_layers, config.embed_dim, config.norm_eps)
        )
        self.layers = nn.ModuleList(DecoderBlock(config, index) for index in range(config.num_layers))
        self.norm = decoder_norm(config, offset=config.final_norm_offset)
        self.output: nn.Linear | LoRALinear | None = (
            None if config.tie_word_embeddings else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        )
        # A reward model's in place of logits (`tune.modules.score`); new where the checkpoint is a language model's.
        self.score: nn.Linear | None = None
        self.score_is_new = False
        if family is not None and family.has_score:
            self.score = nn.Linear(config.embed_dim, 1, bias=False)
        self.rope = RotaryEmbedding(config.full_rotary_channels, config.rope_base, config.rope_scaling)
        self.local_rope = (
            None
            if config.local_rope_base is None
            else RotaryEmbedding(config.rotary_channels, config.local_rope_base, config.local_rope_scaling)
        )
        # Rows of the embedding in checkpoints, where the vocabulary has grown since (`resize_vocabulary`), and of the
        # table of layers' inputs.
        self.num_stored_rows: int | None = None
        self.num_stored_table_rows: int | None = None
        # Of these two matrices, those that an adapter brings along whole (`tune.checkpoints.load_adapter`).
        self.replaced_weights: set[str] = set()
        # What the checkpoint it was filled from holds beside it, to be saved along (`tune.checkpoints.carried`).
        self.carried: Any = None
        self._cache: KVCache | None = None
        self.reset_parameters()

    @property
    def output_weight(self) -> Tensor:
        """The matrix [v, d] that turns hidden states into logits: the embedding where they are tied.

        With an adapter beside the output matrix it is the sum of both, made anew each time, without the adapter's
        dropout: what is dropped differs from token to token, and no one matrix does that. Of a reward model it is the
        score's [1, d].
        """
        if self.score is not None:
            return self.score.weight
        if isinstance(self.output, LoRALinear):
            return self.output.merged_weight()
        module = self.tok_embeddings if self.output is None else self.output
        if isinstance(module, TokenRowsEmbedding | TokenRowsLinear):
            return module.merged_weight()
        weight: Tensor = module.weight
        return weight

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
        num_tokens: Tensor | None = None,
    ) -> Tensor:
        """Return logits [b, s, v], in the dtype of the matrices.

        Args:
            tokens: token ids [b, s].
            mask: bool [b, s, s_kv], True where a query may see a key; it alone decides, so it must be causal
                itself. None: causal. With caches, s_kv counts slots from position 0, up to this call's last
                position or further.
            input_pos: positions [b, s] or [1, s]; with caches a token's slot as well. Without caches and mask, each 0
                begins a document, and none sees another. None: counted from 0, or onwards from what the caches hold.
            num_tokens: with caches, how many tokens of each row are its text [b], before the pads; None: all. Only
                layers with a state ask: it would go on from the pads.
        """
        return self.unembed(self.hidden(tokens, mask=mask, input_pos=input_pos, num_tokens=num_tokens))

    def hidden(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
        num_tokens: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states [b, s, d] that `unembed` turns into logits; arguments as in `forward`."""
        cache = self._cache
        call = Call.begin(cache, tokens, mask, input_pos, num_tokens)
        if cache is not None and cache.tokens is not None:
            cache.keep_tokens(tokens, call.positions)
            if call.outgrows(self._ropes):
                return self._read_anew(cache, call)
        rope: tuple[Tensor, ...] = self.rope(call.positions, call.text_len)
        local_rope = rope if self.local_rope is None else self.local_rope(call.positions, call.text_len)
        if self.config.query_scaling is not None:
            growth = self.config.query_scaling.factors(call.positions)
            rope, local_rope = (*rope, growth), (*local_rope, growth)
        x = self.tok_embeddings(tokens)  # [b, s, d]
        if self.config.embed_norm:
            x = F.rms_norm(x, x.shape[-1:], None, self.config.norm_eps)
        if self.config.embed_scale != 1.0:
            # Rounded to the embeddings' dtype, as these models were trained; on the host, so nothing waits.
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device="cpu").item()
        given = None if self.per_layer_input is None else self.per_layer_input(tokens, x)
        lent: dict[Any, KeysValues] = {}  # by whether the layers have a window
        full_mask, sliding_mask = call.attention_masks(
            self.config, compute_dtype(x), has_dropout=self.training and self.config.attn_dropout > 0
        )
        runs = call.document_runs() if self.config.state_layers else None
        for index, layer in enumerate(self.layers):
            turned = local_rope if layer.is_sliding else rope
            result = layer(
                x,
                turned if layer.has_rope and not layer.has_state else None,
                runs if layer.has_state else sliding_mask if layer.is_sliding else full_mask,
                None if cache is None else cache.layers[index],
                lent.get(layer.is_sliding),
                None if given is None else given[index],
            )
            if isinstance(result, tuple):
                x, lent[layer.is_sliding] = result
            else:
                x = result
        if cache is not None:
            cache.commit(tokens.shape[1])
        out: Tensor = self.norm(x)
        return out if self.config.logit_divisor == 1.0 else out / self.config.logit_divisor

    def _read_anew(self, cache: KVCache, call: Call) -> Tensor:
        """Return the hidden states [b, s, d] of a call that brings a text to where other frequencies hold.

        What the caches hold was turned by the old ones: the whole text is read once more.
        """
        assert cache.tokens is not None
        num_tokens = None if cache.rows is None else cache.rows.ends_after(call.positions.shape[1])
        cache.reset()
        whole = self.hidden(
            cache.tokens[:, : call.text_len].clone(), num_tokens=num_tokens
        )  # [b, text_len, d]
        wanted = call.positions.expand(cache.batch_size, -1).long()  # [b, s]
        return whole.gather(1, wanted[..., None].expand(-1, -1, whole.shape[-1]))

    @property
    def _ropes(self) -> tuple[RotaryEmbedding | None, RotaryEmbedding | None]:
        return self.rope, self.local_rope

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return logits [..., v] for hidden states [..., d]; of a reward model scores [..., 1] in fp32."""
        if self.score is not None:
            with torch.autocast(hidden.device.type, enabled=False):  # bf16 would tell few of them apart
                return F.linear(hidden.float(), self.score.weight.float())
        if isinstance(self.output, LoRALinear):
            logits: Tensor = self.output(hidden)
        else:
            logits = F.linear(hidden, self.output_weight)
        cap = self.config.final_softcap
        return logits if cap is None else (logits / cap).tanh() * cap

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
        if self.score is not None:
            raise GenerationError("this is a reward model: it gives texts a score, and writes none")
        weight = self.tok_embeddings.weight
        self._cache = KVCache(
            config=self.config,
            batch_size=batch_size,
            max_seq_len=self.config.max_seq_len if max_seq_len is None else max_seq_len,
            dtype=weight.dtype if dtype is None else dtype,
            device=weight.device if device is None else torch.device(device),
            keeps_tokens=any(
                rope is not None and rope.scaling is not None and rope.scaling.switch_len is not None
                for rope in self._ropes
            ),
        )

    def caches_are_enabled(self) -> bool:
        """Whether calls continue the text of the calls before."""
        return self._cache is not None

    def reset_caches(self) -> None:
        """Begin a new text in the caches that are set up."""
        self._set_up_cache().reset()

    def fixed_cache_shapes(self) -> AbstractContextManager[None]:
        """Return a context for calls of one token a row, all of the same shapes: `KVCache.fixed_shapes`."""
        return self._set_up_cache().fixed_shapes()

    def swap_caches(self, caches: KVCache | None) -> KVCache | None:
        """Go on with these caches as they were left, or without, and return those there were."""
        before, self._cache = self._cache, caches
        return before

    def delete_caches(self) -> None:
        """Free the caches: every call stands alone again."""
        self._cache = None

    def _set_up_cache(self) -> KVCache:
        if self._cache is None:
            raise GenerationError("no caches are set up: call setup_caches(batch_size, max_seq_len) first")
        return self._cache

    def reset_parameters(self) -> None:
        """Initialise every parameter in place for training from scratch; does nothing on the meta device."""
        if not self.tok_embeddings.weight.is_meta:
            init_weights_(self, self.tok_embeddings.weight, self.config.num_layers)
