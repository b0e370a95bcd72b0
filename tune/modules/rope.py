"""Rotary positions: channel i turns with channel i + r / 2, or, in families that keep it so, channel 2i with 2i + 1.

Shapes: b batch, s sequence, n heads, h_d head width, r channels of a head that turn, the first ones.
Meta's weights, stored for neighbours where Hugging Face's are for halves, are permuted when they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune.errors import TrainingError
from tune.modules.rope_scaling import RopeScaling

_MAX_LENGTHS = 8  # lengths whose frequencies are kept


class RotaryEmbedding(nn.Module):
    """Cosines and sines for positions, in fp32 whatever the model's dtype.  # arXiv:2104.09864, 3.2.2

    The frequencies are no buffer: they are formed at the first use on a device. So neither a build on the meta
    device nor `model.to(torch.bfloat16)` can leave garbage or rounded angles behind.

    Args:
        rotary_channels: r, channels of a head that turn, even.
        base: base of the geometric row of frequencies.
        scaling: how they are stretched for longer texts.
    """

    def __init__(self, rotary_channels: int, base: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.rotary_channels = rotary_channels
        self.base = base
        self.scaling = scaling
        self._frequencies: dict[tuple[torch.device, int], Tensor] = {}

    def forward(self, positions: Tensor, text_len: int | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for integer positions.

        Args:
            positions: [b or 1, s].
            text_len: positions of the longest text, where frequencies depend on it; None: up to the largest position
                here (such models wait for the device to tell).

        Returns:
            Two fp32 tensors [b or 1, s, 1, r / 2].
        """
        angles = positions[..., None].float() * self._frequencies_for(positions, text_len)  # [b, s, r / 2]
        angles = angles[:, :, None]  # [b, s, 1, r / 2]
        cos, sin = angles.cos(), angles.sin()
        factor = 1.0 if self.scaling is None else self.scaling.attention_factor
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)

    def crosses(self, earlier: int, text_len: int) -> bool:
        """Return whether a text that grows has to be turned anew from its beginning.

        Args:
            earlier: positions that were read before.
            text_len: positions there are now.
        """
        switch_len = None if self.scaling is None else self.scaling.switch_len
        return switch_len is not None and 0 < earlier <= switch_len < text_len

    def _frequencies_for(self, positions: Tensor, text_len: int | None) -> Tensor:
        alike = 0
        if self.scaling is not None and self.scaling.follows_length:
            alike = self.scaling.alike(int(positions.max()) + 1 if text_len is None else text_len)
        key = (positions.device, alike)
        if key not in self._frequencies:
            if len(self._frequencies) >= _MAX_LENGTHS:  # one for each length of a text that grows
                self._frequencies.clear()
            self._frequencies[key] = self._form_frequencies(positions.device, alike)
        return self._frequencies[key]

    def _form_frequencies(self, device: torch.device, text_len: int) -> Tensor:
        # A tensor made under inference_mode would stay unusable for a later training step.
        with torch.inference_mode(False):
            exponents = torch.arange(0, self.rotary_channels, 2, device=device).float() / self.rotary_channels
            frequencies = 1.0 / (self.base**exponents)
            if self.scaling is None:
                return frequencies
            return self.scaling.scale(frequencies, self.base, text_len)

    def extra_repr(self) -> str:
        return f"rotary_channels={self.rotary_channels}, base={self.base}, scaling={self.scaling}"


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, neighbours: bool = False) -> Tensor:
    """Return x turned by its positions' angles, formed in fp32 and given back in x's dtype.

    Args:
        x: queries or keys [b, s, n, h_d].
        cos: [b or 1, s, 1, r / 2], fp32; channels from r on stay as they are.
        sin: as `cos`.
        neighbours: channels 2i and 2i + 1 turn together, not i and i + r / 2.

    Raises:
        TrainingError: the angles were rounded on the way (a wrapper cast the block's inputs).
    """
    if cos.dtype != torch.float32:
        raise TrainingError(
            f"rotary angles arrived as {cos.dtype}, and only fp32 keeps far positions apart; "
            "wrap the blocks without casting their inputs (MixedPrecisionPolicy(cast_forward_inputs=False))"
        )
    half = cos.shape[-1]
    if neighbours:
        turning, still = torch.split(x.float(), [2 * half, x.shape[-1] - 2 * half], dim=-1)
        first, second = turning[..., 0::2], turning[..., 1::2]  # [b, s, n, r / 2] each
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((turned.flatten(-2), still), dim=-1).type_as(x)
    if 2 * half == x.shape[-1]:
        first, second = x.float().chunk(2, dim=-1)  # [b, s, n, r / 2] each
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)
    first, second, still = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, still), dim=-1).type_as(x)
