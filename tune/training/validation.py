"""The loss on data that is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tune.utils.mesh import Mesh

__all__ = ["mean_loss"]


@torch.no_grad()
def mean_loss(
    model: nn.Module, batch_loss: Callable[[Any], tuple[Tensor, int]], batches: Iterable[Any], mesh: Mesh
) -> float:
    """Return the loss per target over all batches of all processes; each of them must call this.

    Args:
        model: put into evaluation mode meanwhile.
        batch_loss: returns the loss summed over the targets of a batch, and their number.
        batches: of this process.
        mesh: the processes of the run.
    """
    total, num_targets = torch.zeros((), device=mesh.device), 0
    model.eval()
    for batch in batches:
        batch_total, batch_targets = batch_loss(batch)
        total += batch_total
        num_targets += batch_targets
    model.train()
    return float(mesh.sum_(total)) / max(mesh.sum(num_targets), 1)
