"""Functions of a gate."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def activate(gate: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
    """Return the function of this name, gelu in its tanh form."""
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
