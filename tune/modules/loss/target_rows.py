"""Where the targets of a batch are, without waiting for the device where the host has counted them."""

from __future__ import annotations

import torch
from torch import Tensor

_NO_TARGET = -100


def target_rows(labels: Tensor, num_targets: int | None, ignore_index: int = _NO_TARGET) -> Tensor:
    """Return which labels [n] are targets, ascending [t].

    Args:
        labels: of which `ignore_index` is no target.
        num_targets: how many labels are not -100, where the host knows; None, or where something else is no target:
            they are counted, and the host waits for the device to tell.
    """
    is_target = labels != ignore_index
    if num_targets is None or ignore_index != _NO_TARGET:
        return is_target.nonzero().squeeze(1)
    return torch.nonzero_static(is_target, size=num_targets).squeeze(1)
