"""How a run is spread over its processes: what each of them holds.

All dimensions of the mesh are data-parallel so far: `replicate` x `shard`. A tensor-parallel one would come last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from tune.errors import ConfigError
from tune.modules.peft import FrozenLinear
from tune.training.distributed.processes import max_over_ranks
from tune.utils import get_logger, get_world_size
from tune.utils.ranks import SplitParams, split_processes

__all__ = ["ParallelPlan", "plan_frozen_base", "plan_parallel"]

# Of a device's memory, what a frozen base may take so that every process holds it whole: the rest is for activations.
FROZEN_SHARE = 0.5


@dataclass(frozen=True)
class ParallelPlan:
    """What each process holds of the model.

    Args:
        replicate_dim: groups of processes that each hold a whole copy.
        shard_dim: processes that one copy is cut over.
        cpu_offload: shards wait in host memory.
        sharded_layers: further modules that are gathered on their own, such as tok_embeddings.
        chosen: the sizes were asked for, and not found out.
    """

    replicate_dim: int = 1
    shard_dim: int = 1
    cpu_offload: bool = False
    sharded_layers: tuple[str, ...] = ()
    chosen: bool = False

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.replicate_dim * self.shard_dim

    @property
    def shards(self) -> bool:
        """Whether a process holds less than the model."""
        return self.shard_dim > 1

    def replicated(self) -> ParallelPlan:
        """Return the plan by which each process holds everything."""
        return replace(self, replicate_dim=self.world_size, shard_dim=1, cpu_offload=False, sharded_layers=())

    def __str__(self) -> str:
        if self.world_size == 1:
            return "1 process"
        if not self.shards:
            return f"{self.world_size} processes with a whole copy each"
        copies = f"{self.replicate_dim} copies, each " if self.replicate_dim > 1 else ""
        where = ", waiting in host memory" if self.cpu_offload else ""
        return f"{self.world_size} processes: {copies}sharded over {self.shard_dim}{where}"


class ParallelParams(SplitParams, Protocol):
    """What is read of a recipe's parameters."""

    @property
    def custom_sharded_layers(self) -> Sequence[str] | None: ...
    @property
    def low_cpu_ram(self) -> bool: ...


def plan_parallel(params: ParallelParams) -> ParallelPlan:
    """Return the plan for the processes that were started, having refused one that they cannot carry out.

    Raises:
        ConfigError: the mesh needs another number of processes, or what is asked for needs sharding.
    """
    replicate_dim, shard_dim = split_processes(get_world_size(), params)
    if params.custom_sharded_layers and shard_dim == 1:
        get_logger().info(
            f"Nothing is sharded: custom_sharded_layers {list(params.custom_sharded_layers)} has no effect."
        )
    if params.low_cpu_ram:
        get_logger().info("Loading holds one tensor beside the model's own, with or without low_cpu_ram.")
    return ParallelPlan(
        replicate_dim,
        shard_dim,
        params.fsdp_cpu_offload,
        tuple(params.custom_sharded_layers or ()),
        chosen=params.data_parallel_shard_dim > 1 or params.fsdp_cpu_offload,
    )


def plan_frozen_base(plan: ParallelPlan, model: nn.Module, device: torch.device) -> ParallelPlan:
    """Return the plan for a model of which only adapters are trained.

    Unless sharding was asked for by number, a base that fits is held whole by every process: then nothing but the
    gradients of the adapters has to be sent. "Fits" is half of the memory of the smallest device. Every process must
    call this.

    Args:
        plan: from `plan_parallel`.
        model: with its adapters, on the meta device.
        device: of this process.

    Raises:
        ConfigError: sharding was asked for, but the base is in 4 bits.
    """
    if not plan.shards:
        return plan
    if any(isinstance(module, FrozenLinear) and module.quantize_base for module in model.modules()):
        # A block of 64 numbers shares a scale, and lies across the rows that shards are made of.
        if plan.chosen:
            raise ConfigError(
                "4-bit weights (quantize_base) are not sharded: every process holds them whole, which takes 0.52 "
                "bytes per parameter. Leave data_parallel_shard_dim at -1 and fsdp_cpu_offload at false, or set "
                "quantize_base to false."
            )
        return plan.replicated()
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # The machines of a run may differ; what they do may not.
    least = -max_over_ranks(-_memory_of(device))
    if not plan.chosen and num_bytes <= FROZEN_SHARE * least:
        return plan.replicated()
    return plan


def _memory_of(device: torch.device) -> float:
    """Return the bytes that this process may use: of its GPU, or its part of the host's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
