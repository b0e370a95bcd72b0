"""Tensors of which each process holds a part: read whole, and filled from a whole.

A sharded tensor is a `DTensor`, cut along its first dimension. Where a run shards nothing, these functions do what
their names say to plain tensors, and torch's distributed package is not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "copy_into_",
    "copy_into_place_",
    "full_tensor",
    "init_sharded_",
    "is_sharded",
    "local_part",
    "take_from_first_",
]


def is_sharded(tensor: object) -> bool:
    """Tell whether this process holds only a part of `tensor`."""
    # Half a second of imports, and nobody can have made one without them.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a sharded one a new tensor, for which every process must call this."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    if sharded.device.type != sharded.device_mesh.device_type:
        # Shards that wait in host memory: the gather runs where the processes talk to each other.
        sharded = sharded.to(sharded.device_mesh.device_type)
    gathered: Tensor = sharded.full_tensor()
    return gathered


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, as a view."""
    sharded: Any = tensor
    part: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return part


def first_element(tensor: Tensor) -> int:
    """Return which element of the whole tensor, in row-major order, is the first that this process holds."""
    if not is_sharded(tensor):
        return 0
    return _rows_held(tensor)[0] * (tensor.numel() // max(tensor.shape[0], 1))


@torch.no_grad()
def copy_into_(target: Tensor, full: Tensor) -> None:
    """Copy into `target`, in its dtype and on its device, what this process holds of it. Nothing is sent.

    Args:
        target: a tensor, sharded or not.
        full: all values, of the same shape; the same on every process.
    """
    # `full` may be a view of a mapped file: only the part that is copied is then read.
    local_part(target).copy_(_cut(full, target) if is_sharded(target) else full)


@torch.no_grad()
def copy_into_place_(target: Tensor, place: int, values: Tensor) -> None:
    """Copy into `target[place]` where this process holds it; as `copy_into_`, for one place of the first dimension."""
    first, last = _rows_held(target) if is_sharded(target) else (0, target.shape[0])
    if first <= place < last:
        local_part(target)[place - first].copy_(values)


def init_sharded_(target: Tensor, initialise: Callable[[Tensor], Any]) -> None:
    """Fill `target` with random numbers, the same whether and how it is sharded.

    Args:
        target: a tensor, sharded or not.
        initialise: fills a plain tensor in place, as the functions of torch.nn.init do; random generators must stand
            at the same place on every process.
    """
    if not is_sharded(target):
        initialise(target)
        return
    full = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    initialise(full)
    copy_into_(target, full)


def take_from_first_(tensor: Tensor, sharded: Any) -> None:
    """Give every process that holds a part of `sharded` what the first of them has in `tensor`, in place.

    Each of them must call this, with a tensor of the same shape where they talk to each other.
    """
    import torch.distributed as dist

    for dim, placement in enumerate(sharded.placements):
        if placement.is_shard():
            dist.broadcast(tensor, group=sharded.device_mesh.get_group(dim), group_src=0)


def _cut(full: Tensor, like: Any) -> Tensor:
    """Return this process's part of `full`, as a view, cut as `like` is: along the first dimension at most."""
    first, last = _rows_held(like)
    return full[first:last]


def _rows_held(sharded: Any) -> tuple[int, int]:
    """Return the rows [first, last) of a sharded tensor that this process holds."""
    mesh = sharded.device_mesh
    first, last = 0, sharded.shape[0]
    for dim, placement in enumerate(sharded.placements):
        if placement.is_shard():
            assert placement.dim == 0, "weights are cut along their first dimension"
            # As torch.chunk: equal parts, rounded up; the last ones may be smaller or empty.
            size = -(-(last - first) // mesh.size(dim))
            first = min(first + mesh.get_local_rank(dim) * size, last)
            last = min(first + size, last)
    return first, last
