"""The plan for many processes, checked. One process is what this version runs."""

from __future__ import annotations

from tune.errors import ConfigError
from tune.utils import get_logger, get_world_size

__all__ = ["check_parallel_plan"]


def check_parallel_plan(
    *,
    enable_fsdp: bool,
    data_parallel_replicate_dim: int,
    data_parallel_shard_dim: int,
    fsdp_cpu_offload: bool,
    custom_sharded_layers: list[str] | tuple[str, ...] | None,
    low_cpu_ram: bool,
) -> str:
    """Return the plan in words, having refused one that a single process cannot carry out.

    Raises:
        ConfigError: there are several processes, or the mesh needs several.
    """
    world_size = get_world_size()
    if world_size != 1:
        raise ConfigError(
            f"{world_size} processes were started, but this version trains in one. Start it without a launcher."
        )
    shard_dim = 1 if data_parallel_shard_dim == -1 else data_parallel_shard_dim
    needed = data_parallel_replicate_dim * shard_dim
    if needed != world_size:
        raise ConfigError(
            f"data_parallel_replicate_dim {data_parallel_replicate_dim} x data_parallel_shard_dim {shard_dim} "
            f"needs {needed} processes, but there is {world_size}. Set both to 1, or the second to -1."
        )
    if fsdp_cpu_offload:
        raise ConfigError(
            "fsdp_cpu_offload keeps shards in host memory, but one process shards nothing. Set it to false; "
            "enable_activation_checkpointing and optimizer_in_bwd save memory on one GPU."
        )
    if custom_sharded_layers:
        get_logger().info(
            f"One process shards nothing: custom_sharded_layers {list(custom_sharded_layers)} has no effect."
        )
    if low_cpu_ram:
        get_logger().info("Loading holds at most one copy of the weights, with or without low_cpu_ram.")
    return "1 process, nothing to shard" if enable_fsdp else "1 process"
