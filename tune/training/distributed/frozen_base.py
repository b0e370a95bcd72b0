"""Whether a base that is not trained is cut over the processes of a run, or held whole by each of them."""

from __future__ import annotations

import os

import torch
from torch import nn

from tune.modules.peft import FrozenLinear
from tune.utils.exclusions import Choices, refuse_excluded
from tune.utils.mesh import Mesh
from tune.utils.ranks import get_local_world_size

__all__ = ["shard_dim_of_base"]

# Of a device's memory, what a frozen base may take so that every process holds it whole: the rest is for activations.
FROZEN_SHARE = 0.5


def shard_dim_of_base(model: nn.Module, mesh: Mesh, *, required: bool, share: float = FROZEN_SHARE) -> int:
    """Return over how many processes to cut a model of which only adapters are trained; every process must call this.

    Unless shards are required, a base that fits is held whole by every process: then nothing but the gradients of the
    adapters has to be sent. "Fits" is a share of the memory of the smallest device.

    Args:
        model: with its adapters, on the meta device.
        mesh: the processes of the run.
        required: sharding was asked for by number, or something else that was asked for needs it.
        share: of the memory, that it may take.

    Raises:
        ConfigError: it is required, but the base is in 4 bits.
    """
    if not mesh.shards:
        return 1
    if any(isinstance(module, FrozenLinear) and module.quantize_base for module in model.modules()):
        # A block of 64 numbers shares a scale, and lies across the rows that shards are made of.
        refuse_excluded(Choices(quantized="quantize_base", sharded=required))
        return 1
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # The machines of a run may differ; what they do may not.
    least = -mesh.max(-_memory_of(mesh.device))
    return mesh.shard_dim if required or num_bytes > share * least else 1


def _memory_of(device: torch.device) -> float:
    """Return the bytes that this process may use: of its GPU, or its part of the host's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host / get_local_world_size()
