"""A number that a layer's result is multiplied by: learnt once, and kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x times one number, which checkpoints hold and fine-tuning leaves alone, as in transformers."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(1))

    def reset_parameters(self) -> None:
        """Begin with one."""
        self.value.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the number, in x's dtype."""
        return x * self.value.to(x)
