"""Which process this is, as the launcher told it through the environment."""

from __future__ import annotations

import os
from typing import Protocol

from tune.errors import ConfigError


def get_rank() -> int:
    """Return this process's number among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def get_world_size() -> int:
    """Return the number of processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Tell whether this process is the one that logs and writes."""
    return get_rank() == 0


class SplitParams(Protocol):
    """What is read of a recipe's parameters; `tune describe full_finetune NAME` says what each means."""

    @property
    def enable_fsdp(self) -> bool: ...
    @property
    def data_parallel_replicate_dim(self) -> int: ...
    @property
    def data_parallel_shard_dim(self) -> int: ...
    @property
    def fsdp_cpu_offload(self) -> bool: ...
    @property
    def optimizer_in_bwd(self) -> bool: ...
    @property
    def dtype(self) -> str: ...


def split_processes(world_size: int, params: SplitParams) -> tuple[int, int]:
    """Return into how many copies of the model, of how many shards each, the processes of a run are split.

    Args:
        world_size: processes.
        params: the recipe's. Without `enable_fsdp` every process holds a whole copy; a `data_parallel_shard_dim` of -1
            means all processes that are left.

    Raises:
        ConfigError: what is asked for needs another number of processes, or cannot be carried out by them so split.
    """
    replicate_dim, shard_dim = params.data_parallel_replicate_dim, params.data_parallel_shard_dim
    if not params.enable_fsdp:
        replicate_dim, shard_dim = world_size if replicate_dim == 1 else replicate_dim, 1
    elif shard_dim == -1:
        shard_dim = max(world_size // replicate_dim, 1)
    needed = replicate_dim * shard_dim
    if needed != world_size:
        raise ConfigError(
            f"data_parallel_replicate_dim {replicate_dim} x data_parallel_shard_dim {shard_dim} needs {needed} "
            f"processes, but {world_size} {'was' if world_size == 1 else 'were'} started (tune run --nproc_per_node "
            f"{needed} ...). Set the first to 1 and the second to -1 to use however many there are."
        )
    _check_split(world_size, shard_dim, params)
    return replicate_dim, shard_dim


def _check_split(world_size: int, shard_dim: int, params: SplitParams) -> None:
    """Refuse settings that these processes, of which `shard_dim` share one copy of the model, cannot carry out."""
    if params.fsdp_cpu_offload and shard_dim == 1:
        raise ConfigError(
            f"fsdp_cpu_offload keeps shards in host memory, but with {world_size} process"
            f"{'' if world_size == 1 else 'es'} and data_parallel_shard_dim {shard_dim} nothing is sharded. Set it to "
            "false; enable_activation_checkpointing and optimizer_in_bwd save memory on one GPU."
        )
    if params.optimizer_in_bwd and world_size > 1 and shard_dim == 1:
        raise ConfigError(
            "optimizer_in_bwd steps within the backward pass, before the gradients of processes with a whole copy "
            "each have been added up. Set optimizer_in_bwd=false, or shard (enable_fsdp=true)."
        )
    if params.dtype == "fp16" and shard_dim > 1:
        raise ConfigError(
            "fp16 looks for its loss scale in each process's part of the gradients alone, and sharded processes would "
            "find different ones. Set dtype=bf16, or enable_fsdp=false."
        )
