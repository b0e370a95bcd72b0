"""Rotary positions, in the half-split layout: channel i turns with channel i + h_d / 2.

Shapes: b batch, s sequence, n heads, h_d head width.
Weights stored for the interleaved layout (channel 2i with 2i + 1) are permuted when they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune.errors import TrainingError


class RotaryEmbedding(nn.Module):
    """Cosines and sines for positions, in fp32 whatever the model's dtype.  # arXiv:2104.09864, 3.2.2

    The frequencies are no buffer: they are formed at the first use on a device. So neither a build on the meta
    device nor `model.to(torch.bfloat16)` can leave garbage or rounded angles behind.

    Args:
        head_dim: h_d, even.
        base: base of the geometric row of frequencies.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        self._frequencies: Tensor | None = None

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for integer positions.

        Args:
            positions: [b or 1, s].

        Returns:
            Two fp32 tensors [b or 1, s, 1, h_d / 2].
        """
        if self._frequencies is None or self._frequencies.device != positions.device:
            self._frequencies = self._form_frequencies(positions.device)
        angles = positions[..., None].float() * self._frequencies  # [b, s, h_d / 2]
        angles = angles[:, :, None]  # [b, s, 1, h_d / 2]
        return angles.cos(), angles.sin()

    def _form_frequencies(self, device: torch.device) -> Tensor:
        # A tensor made under inference_mode would stay unusable for a later training step.
        with torch.inference_mode(False):
            exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
            return 1.0 / (self.base**exponents)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base}"


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x turned by its positions' angles, formed in fp32 and given back in x's dtype.

    Args:
        x: queries or keys [b, s, n, h_d].
        cos: [b or 1, s, 1, h_d / 2], fp32.
        sin: as `cos`.

    Raises:
        TrainingError: the angles were rounded on the way (a wrapper cast the block's inputs).
    """
    if cos.dtype != torch.float32:
        raise TrainingError(
            f"rotary angles arrived as {cos.dtype}, and only fp32 keeps far positions apart; "
            "wrap the blocks without casting their inputs (MixedPrecisionPolicy(cast_forward_inputs=False))"
        )
    first, second = x.float().chunk(2, dim=-1)  # [b, s, n, h_d / 2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)
