"""Whether the weights a run is resumed with are those that were trained.

A saved step's `model/` is for other tools, and may hold something else than what was trained: averaged weights, say,
or a rounded copy. Training on from that would be another run, so a sum over the bits of each trained weight is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tune.errors import CheckpointError
from tune.utils import get_logger
from tune.utils.mesh import Mesh
from tune.utils.sharding import is_sharded, local_part

__all__ = ["check_weights", "sum_weights"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def sum_weights(model: nn.Module, mesh: Mesh) -> dict[str, str]:
    """Return dtype and sum of the bits of each weight that is trained, by name, however it is sharded.

    Every process must call this, with shards in place. The bits are added up as whole numbers, modulo 2**64, so that
    neither the order nor the number of processes matters. One pass over the memory of the weights.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained:
        return {}
    sums = [
        local_part(weight).contiguous().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64)
        * _is_counted(weight, mesh)
        for weight in trained.values()
    ]
    # One read from the device for all of them.
    by_rank = mesh.gather_to_all(torch.stack(sums).tolist())
    totals = [sum(column) % 2**64 for column in zip(*by_rank, strict=True)]
    return {
        name: f"{str(weight.dtype).removeprefix('torch.')} {total:016x}"
        for (name, weight), total in zip(trained.items(), totals, strict=True)
    }


def check_weights(
    saved: Mapping[str, str] | None,
    model: nn.Module,
    mesh: Mesh,
    where: str,
    *,
    allow_changes: bool = False,
) -> None:
    """Refuse weights that are not bit for bit what a saved step was trained to; every process must call this.

    Args:
        saved: what `sum_weights` returned when the step was saved; None in steps of older versions.
        model: filled from the saved step.
        mesh: the processes of the run.
        where: the saved step, for the message.
        allow_changes: say so in the log, and go on.

    Raises:
        CheckpointError: a weight differs. One that is now kept in another dtype is not compared.
    """
    now = sum_weights(model, mesh)
    differing = [
        name
        for name, was in (saved or {}).items()
        if name in now and was != now[name] and was.split()[0] == now[name].split()[0]
    ]
    if not differing:
        return
    found = (
        f"{where} holds other weights than were trained: {len(differing)} of {len(now)} differ, the first is "
        f"{differing[0]}. What was exported is not what training stood at, but an average of the weights, say, or a "
        "rounded copy"
    )
    if not allow_changes:
        raise CheckpointError(
            f"{found}; training on from there would be another run. Let the recipe write the trained weights as they "
            "are, and others into a folder of their own beside them; go on all the same with "
            "allow_changes_on_resume=true; or start a new run from them, with another output_dir."
        )
    get_logger().warning(f"{found}. Going on from there all the same.")


def _is_counted(weight: Any, mesh: Mesh) -> bool:
    """Tell whether this process's part is counted: of several processes with the same numbers, the first one's."""
    if not is_sharded(weight):
        return mesh.is_rank_zero
    coordinate = weight.device_mesh.get_coordinate()
    return all(
        placement.is_shard() or place == 0
        for placement, place in zip(weight.placements, coordinate, strict=True)
    )
