"""Weights that hold NaN or infinity: found while they are read, since they show much later, and as something else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MAX_NAMED = 5


@torch.no_grad()
def count_nonfinite(tensor: Tensor) -> int:
    """Return how many values of a floating-point tensor are NaN or infinite.

    One pass without a copy where there are none: extremes pass NaN on. Of a tensor on the CPU it takes less time than
    copying it.
    """
    if not tensor.numel() or all(extreme.isfinite() for extreme in torch.aminmax(tensor)):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def describe_nonfinite(found: Sequence[tuple[str, int, int]]) -> str:
    """Return which tensors hold values that are not finite.

    Args:
        found: name, number of such values and of all values, for each.
    """
    named = [f"{name[:200]} ({count:,} of {size:,})" for name, count, size in found[:_MAX_NAMED]]
    more = f" and {len(found) - _MAX_NAMED} more tensors" if len(found) > _MAX_NAMED else ""
    return f"values that are NaN or infinite: {', '.join(named)}{more}"
