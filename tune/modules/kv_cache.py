"""Keys and values of the tokens already seen, for decoding step by step.

Shapes: b batch, s new tokens, s_kv slots attended to, n_kv key heads, h_d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tune.errors import GenerationError
from tune.modules.config import DecoderConfig
from tune.modules.state_cache import ConvCache, StateCache, StateRows


class LayerCache:
    """One block's keys and values, [b, n_kv, slots, h_d] each.

    Args:
        owner: decides which slots the tokens of a call take.
        shape: of `keys` and of `values`.
        dtype: of both.
        device: of both.
    """

    def __init__(
        self, owner: KVCache, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._owner = owner
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write this call's keys and values [b, n_kv, s, h_d] in place; return views [b, n_kv, s_kv, h_d]."""
        if torch.is_grad_enabled() and keys.requires_grad:
            raise GenerationError(
                "a model with key-value caches cannot be differentiated: run it under torch.no_grad(), "
                "or call model.delete_caches() before training"
            )
        end = self._owner.end
        for kept, new in ((self.keys, keys), (self.values, values)):
            if self._owner.slots is None:
                kept[:, :, end - new.shape[2] : end].copy_(new)
            else:
                rows = torch.arange(new.shape[0], device=new.device)[:, None]  # [b, 1]
                kept[rows, :, self._owner.slots] = new.transpose(1, 2).to(kept.dtype)  # [b, s, n_kv, h_d]
        return self.filled(keys.dtype)

    def filled(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the call in progress attends to, [b, n_kv, s_kv, h_d] each."""
        end = self._owner.end
        return self.keys[:, :, :end].to(dtype), self.values[:, :, :end].to(dtype)


class KVCache:
    """Caches of all blocks. A token takes the slot of its position, and sees the slots up to it.

    So rows of different lengths need no mask: pads on the right stand behind every real token of their row, and the
    token that is generated at such a position overwrites the pad before any query reaches that slot. Layers with a
    state, which goes no way back, are told of the pads instead.

    Args:
        config: of the decoder: its blocks, key heads and widths.
        batch_size: rows; every call must bring exactly these.
        max_seq_len: slots per row.
        dtype: what keys and values are kept in.
        device: where.
        keeps_tokens: the tokens are kept as well, for models that may have to read a text anew.
    """

    def __init__(
        self,
        *,
        config: DecoderConfig,
        batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype,
        device: torch.device,
        keeps_tokens: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.max_seq_len = max_seq_len
        self.num_filled = 0  # slots written so far in the longest row: where a call without positions goes on
        self.slots: Tensor | None = (
            None  # [b, s] of the call in progress; None: the same run of slots in each row
        )
        self.end = 0  # slots the call in progress attends to
        self.is_fixed = False  # within `fixed_shapes`
        # Made outside inference_mode, so that they can be written inside and outside of it.
        with torch.inference_mode(False):
            rows = StateRows(batch_size, device)
            self.rows = rows if config.state_layers else None
            self.layers: list[LayerCache | ConvCache] = []
            for index in range(config.num_layers):
                sizes = config.sizes_of(index)
                if config.delta is not None and index in config.delta.layers:
                    self.layers.append(StateCache(rows, config.delta, batch_size, dtype, device))
                elif config.conv is not None and index in config.conv.layers:
                    width, channels = config.conv.width, config.embed_dim
                    self.layers.append(ConvCache(rows, batch_size, width, channels, dtype, device))
                elif sizes.has_keys:
                    shape = (batch_size, sizes.num_kv_heads, max_seq_len, sizes.head_dim)
                    self.layers.append(LayerCache(self, shape, dtype, device))
                else:  # that of the layer whose keys it attends to
                    self.layers.append(self.layers[config.kv_lenders[index in config.sliding_layers]])
            self.tokens: Tensor | None = (
                torch.zeros(batch_size, max_seq_len, dtype=torch.long, device=device)
                if keeps_tokens
                else None
            )

    def reset(self) -> None:
        """Begin a new text; what the slots still hold is never seen again."""
        self.num_filled = 0
        if self.rows is not None:
            self.rows.reset()
        for layer in self.layers:
            if isinstance(layer, ConvCache):
                layer.reset()

    @contextmanager
    def fixed_shapes(self) -> Iterator[None]:
        """Let calls in the body bring one token a row and its position, and see all slots, behind a mask.

        No shape and nothing on the host depends on how far the text has come: a call can be compiled once, and recorded
        on a GPU. Positions are believed, then and afterwards: each later call brings its own, until `reset`.
        """
        self.is_fixed = True
        self.num_filled = self.end = self.max_seq_len
        try:
            yield
        finally:
            self.is_fixed = False

    def commit(self, num_tokens: int) -> None:
        """Count the slots of the call in progress as filled, once every block has written its tokens there."""
        if not self.is_fixed:
            self.num_filled = max(self.num_filled, self.end)
        if self.rows is not None:
            self.rows.commit(num_tokens)

    def keep_tokens(self, tokens: Tensor, positions: Tensor) -> None:
        """Note the tokens [b, s] that are read at positions [b or 1, s]."""
        assert self.tokens is not None
        self.tokens.scatter_(1, positions.expand(tokens.shape).long(), tokens)

    def place(
        self, tokens: Tensor, input_pos: Tensor | None, num_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the slots of a call's tokens; return their positions and the causal mask, where one is needed.

        Args:
            tokens: [b, s].
            input_pos: positions [b or 1, s]; None: the next s in every row. Costs one wait for the device.
            num_tokens: how many tokens of each row are text [b], before the pads; None: all. For layers with a state.

        Returns:
            Positions [b or 1, s], and a mask [b or 1, s, s_kv]. No mask: the s tokens are all that is attended to,
            causally, or each row's single token sees every slot.
        """
        b, s = tokens.shape
        if b != self.batch_size:
            raise GenerationError(
                f"the caches were set up for {self.batch_size} rows, and {b} came: "
                f"call setup_caches(batch_size={b}, ...)"
            )
        if self.is_fixed:
            return self._place_one(s, input_pos)
        lowest, highest, is_run = self.num_filled, self.num_filled + s - 1, True
        if input_pos is not None:
            smallest, largest = input_pos.aminmax()
            steps = torch.arange(s, device=tokens.device, dtype=input_pos.dtype)
            unequal = (input_pos != smallest + steps).any()
            lowest, highest, is_ragged = torch.stack((smallest, largest, unequal.to(largest.dtype))).tolist()
            is_run = not is_ragged
        if lowest < 0 or highest >= self.max_seq_len:
            raise GenerationError(
                f"the caches have {self.max_seq_len} slots, and positions {lowest} to {highest} came; set them up "
                "with a larger max_seq_len, or call reset_caches() for a new text"
            )
        self.end = highest + 1
        positions = input_pos
        if positions is None:
            positions = torch.arange(lowest, self.end, device=tokens.device)[None]  # [1, s]
        # Where all rows go on together there is nothing to look at, and no wait for the device.
        if self.rows is not None:
            self.rows.place(positions, num_tokens, is_next=input_pos is None and self.rows.is_even)
        self.slots = None if is_run else positions.expand(b, s).long()
        if is_run and (lowest == 0 or s == 1):
            return positions, None
        return positions, positions[:, :, None] >= torch.arange(self.end, device=tokens.device)

    def _place_one(self, num_tokens: int, input_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the positions [b or 1, 1] of a call of fixed shape, and its mask over all slots [b or 1, 1, s_kv]."""
        if input_pos is None or num_tokens != 1:
            raise GenerationError(
                f"a call of fixed shapes takes one token a row and its position, and {num_tokens} tokens came "
                f"{'without' if input_pos is None else 'with'} positions"
            )
        if self.rows is not None:
            self.rows.place(input_pos, None, is_next=True)
        self.slots = input_pos.expand(self.batch_size, 1).long()
        return input_pos, input_pos[:, :, None] >= torch.arange(self.end, device=input_pos.device)
