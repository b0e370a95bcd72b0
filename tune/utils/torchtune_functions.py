"""Small functions of torchtune's `utils`, under its names and with its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def get_world_size_and_rank() -> tuple[int, int]:
    """Return how many processes have joined and which this one is; 1 and 0 before any have."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def batch_to_device(batch: dict[str, Any], device: torch.device) -> None:
    """Move the tensors of a batch, and of dicts inside it, to a device; the dicts are changed in place.

    Raises:
        ValueError: something in it is neither.
    """
    import torch

    for key, value in batch.items():
        if isinstance(value, dict):
            batch_to_device(value, device)
        elif isinstance(value, torch.Tensor):
            batch[key] = value.to(device)
        else:
            raise ValueError(f"the batch's {key!r} is a {type(value).__name__}, neither a tensor nor a dict")
