"""What a layer with a state keeps between two calls of a text that is decoded step by step.

Shapes: b batch, s new tokens, c channels of the convolution, w its width, n_v states, d_k and d_v their widths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune.errors import GenerationError
from tune.modules.gated_delta_config import GatedDeltaConfig


class StateRows:
    """How far the text of each row has come, for all layers with a state.

    A state holds no earlier one: a row goes on where it stopped, or begins anew at position 0.

    Args:
        batch_size: rows.
        device: of the positions.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.ends = torch.zeros(batch_size, dtype=torch.int64, device=device)  # [b], tokens so far
        self.is_even = True  # all rows have as many
        self.num_new: Tensor | None = None  # [b] of the call in progress; None: all of its tokens
        self.firsts = self.ends  # [b], position of each row's first token in the call in progress

    def place(self, positions: Tensor, num_tokens: Tensor | None, *, is_next: bool) -> None:
        """Take the positions of a call.

        Args:
            positions: [b or 1, s].
            num_tokens: how many tokens of each row are text [b], before the pads; None: all.
            is_next: they are known to go on where every row ended: nothing is checked.

        Raises:
            GenerationError: they do not go on where a row's text ended, nor begin at 0.
        """
        s = positions.shape[1]
        self.firsts = positions[:, 0].expand_as(self.ends)
        self.num_new = num_tokens
        if is_next:
            return
        steps = torch.arange(s, device=positions.device)
        fits = (self.firsts == self.ends) | (self.firsts == 0)
        fits &= (positions == positions[:, :1] + steps).all(-1)
        if num_tokens is not None:
            fits |= num_tokens == 0
        if not fits.all():
            row = int((~fits).nonzero()[0])
            raise GenerationError(
                f"layers of this model keep a state, which goes on where a row's text ended: row {row} has "
                f"{int(self.ends[row])} tokens, and positions from {int(self.firsts[row])} on came. Say with "
                "num_tokens which tokens of a padded row are its text, or call reset_caches() for a new one"
            )

    def ends_after(self, num_tokens: int) -> Tensor:
        """Return how many tokens each row has [b] with the call in progress, which brings so many."""
        if self.num_new is None:
            return self.firsts + num_tokens
        return torch.where(self.num_new > 0, self.firsts + self.num_new, self.ends)

    def commit(self, num_tokens: int) -> None:
        """Count the tokens of the call in progress."""
        self.ends.copy_(self.ends_after(num_tokens))  # in place: a recorded call goes on from here
        self.is_even = self.is_even and self.num_new is None

    def reset(self) -> None:
        """Begin a new text in every row."""
        self.ends.zero_()
        self.is_even = True


class ConvCache:
    """The last inputs of one layer's convolution [b, w - 1, c].

    Args:
        rows: how far they have come.
        batch_size: b.
        width: w.
        num_channels: c.
        dtype, device: of the inputs.
    """

    def __init__(
        self,
        rows: StateRows,
        batch_size: int,
        width: int,
        num_channels: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self.inputs = torch.zeros(batch_size, width - 1, num_channels, dtype=dtype, device=device)

    def extend(self, inputs: Tensor) -> Tensor:
        """Keep the last of these inputs [b, s, c]; return those before them, [b, w - 1, c]."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            raise GenerationError(
                "a model with caches cannot be differentiated: run it under torch.no_grad(), or call "
                "model.delete_caches() before training"
            )
        before = self.inputs.to(inputs.dtype, copy=True)
        both = torch.cat((before, inputs), 1)  # [b, w - 1 + s, c]
        if self._rows.num_new is None:
            self.inputs.copy_(both[:, inputs.shape[1] :])
        else:
            places = self._rows.num_new[:, None] + torch.arange(before.shape[1], device=inputs.device)
            self.inputs.copy_(both.gather(1, places[..., None].expand_as(before)))
        return before

    def reset(self) -> None:
        """Forget everything."""
        self.inputs.zero_()


class StateCache(ConvCache):
    """One layer's state [b, n_v, d_k, d_v], of fp32 at least, and the last inputs of its convolution.

    Args:
        rows, batch_size, dtype, device: as in `ConvCache`.
        config: sizes of the layer.
    """

    def __init__(
        self,
        rows: StateRows,
        config: GatedDeltaConfig,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(rows, batch_size, config.conv_width, config.conv_dim, dtype, device)
        shape = (batch_size, config.num_value_heads, config.key_head_dim, config.value_head_dim)
        self.state = torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float32), device=device)

    def without_pads(self, gates: Tensor) -> Tensor:
        """Return gates [b, s, n_v] that are zero at pads: nothing is forgotten there, and nothing written."""
        if self._rows.num_new is None:
            return gates
        is_pad = torch.arange(gates.shape[1], device=gates.device) >= self._rows.num_new[:, None]  # [b, s]
        return gates.masked_fill(is_pad[..., None], 0.0)

    def reset(self) -> None:
        super().reset()
        self.state.zero_()
