"""What processes, optimizers, precisions and weights in 4 bits exclude, in one table.

A configuration is held against it when it is validated, while nobody knows how many processes there will be; before
processes are started, and by each of them, when the number is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tune.errors import ConfigError

__all__ = ["Choices", "find_exclusions", "refuse_excluded", "split_processes"]


@dataclass(frozen=True)
class Choices:
    """What a run has chosen, as far as whoever asks knows it.

    Args:
        world_size: processes.
        enable_fsdp, replicate_dim, shard_dim: how they are split, see `split_processes`.
        cpu_offload: shards wait in host memory.
        dtype: of the forward and backward pass.
        optimizer: dotpath of its class.
        fused: its fused form was asked for.
        optimizer_in_bwd: it steps within the backward pass.
        quantized: the field that asks for weights in 4 bits.
        sharded: whether the weights are cut; None: as the split says.
    """

    world_size: int | None = None
    enable_fsdp: bool = True
    replicate_dim: int = 1
    shard_dim: int = -1
    cpu_offload: bool = False
    dtype: str = ""
    optimizer: str = ""
    fused: bool = False
    optimizer_in_bwd: bool = False
    quantized: str = ""
    sharded: bool | None = None

    @property
    def cuts(self) -> bool:
        """Whether weights are cut for certain."""
        return self.sharded or (self.sharded is None and (self.shard_dim > 1 or self.cpu_offload))

    @property
    def copies(self) -> bool:
        """Whether every process holds all weights for certain."""
        return self.sharded is False or not self.enable_fsdp or self.shard_dim == 1

    @property
    def split(self) -> str:
        """What makes every process hold all weights, in words."""
        given = f"data_parallel_shard_dim {self.shard_dim}" if self.enable_fsdp else "enable_fsdp false"
        if self.world_size is None:
            return given
        return f"{self.world_size} process{'es' * (self.world_size > 1)} and {given}"


class _Exclusion(NamedTuple):
    """Choices that exclude each other: when, why and what to choose, and the fields concerned.

    The message reads on from the first field's name; that is the one to change first.
    """

    applies: Callable[[Choices], bool]
    message: str
    fields: tuple[str, ...]


_TABLE = (
    _Exclusion(
        lambda c: not c.enable_fsdp and c.shard_dim > 1,
        "shards over {c.shard_dim} processes, but enable_fsdp is false: every process holds a whole copy; leave it "
        "at -1",
        ("data_parallel_shard_dim", "enable_fsdp"),
    ),
    _Exclusion(
        lambda c: c.cpu_offload and c.copies,
        "keeps shards in host memory, but with {c.split} nothing is sharded; set it to false: "
        "enable_activation_checkpointing and optimizer_in_bwd save memory on one GPU",
        ("fsdp_cpu_offload", "data_parallel_shard_dim", "enable_fsdp"),
    ),
    _Exclusion(
        lambda c: c.optimizer_in_bwd and c.copies and max(c.world_size or 1, c.replicate_dim) > 1,
        "steps within the backward pass, before the gradients of processes with a whole copy each have been added up; "
        "shard (enable_fsdp, data_parallel_shard_dim), or set it to false",
        ("optimizer_in_bwd", "data_parallel_replicate_dim", "data_parallel_shard_dim"),
    ),
    _Exclusion(
        lambda c: c.optimizer_in_bwd and c.dtype == "fp16",
        "cannot unscale fp16 gradients before its steps; use bf16",
        ("optimizer_in_bwd", "dtype"),
    ),
    _Exclusion(
        lambda c: c.dtype == "fp16" and c.cuts,
        "fp16 looks for its loss scale in each process's part of the gradients alone, and sharded processes would find "
        "different ones; use bf16, or set enable_fsdp to false",
        ("dtype", "data_parallel_shard_dim"),
    ),
    _Exclusion(
        lambda c: c.optimizer.startswith("bitsandbytes.") and c.cuts,
        "is {c.optimizer}, which takes no sharded weights; use torch.optim.AdamW, or set enable_fsdp to false, by "
        "which every process holds the whole model",
        ("optimizer", "data_parallel_shard_dim", "fsdp_cpu_offload"),
    ),
    _Exclusion(  # torch 2.11, 2.13: of the fused optimizers, Adam and AdamW take shards
        lambda c: c.optimizer.startswith("torch.") and c.optimizer.endswith(".SGD") and c.fused and c.cuts,
        "has no form for sharded weights in SGD; remove it",
        ("optimizer.fused", "data_parallel_shard_dim", "fsdp_cpu_offload"),
    ),
    _Exclusion(
        lambda c: bool(c.quantized) and c.cuts,
        "keeps weights in 4 bits, which are not sharded: every process holds them whole, which takes 0.52 bytes per "
        "parameter; leave data_parallel_shard_dim at -1, fsdp_cpu_offload at false and, on several processes, "
        "optimizer_in_bwd at false",
        ("{c.quantized}", "data_parallel_shard_dim", "fsdp_cpu_offload"),
    ),
    _Exclusion(
        lambda c: bool(c.quantized) and c.dtype == "fp16",
        "is dequantised to bf16 or fp32; use bf16",
        ("{c.quantized}", "dtype"),
    ),
)


def find_exclusions(choices: Choices) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what of these choices cannot be had together: a message that reads on from the first field; the fields."""
    for applies, message, fields in _TABLE:
        if applies(choices):
            yield message.format(c=choices), tuple(field.format(c=choices) for field in fields)


def refuse_excluded(choices: Choices) -> None:
    """Refuse choices that cannot be had together.

    Raises:
        ConfigError: the first of what `find_exclusions` finds.
    """
    for message, fields in find_exclusions(choices):
        raise ConfigError(f"{fields[0]} {message}.")


def split_processes(choices: Choices) -> tuple[int, int]:
    """Return into how many copies of the model, of how many shards each, the processes of a run are split.

    Args:
        choices: with `world_size`. Without `enable_fsdp` every process holds a whole copy; a `shard_dim` of -1 means
            all processes that are left.

    Raises:
        ConfigError: what is asked for needs another number of processes, or cannot be carried out by them so split.
    """
    world_size, replicate_dim, shard_dim = choices.world_size or 1, choices.replicate_dim, choices.shard_dim
    if not choices.enable_fsdp:
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
    refuse_excluded(replace(choices, replicate_dim=replicate_dim, shard_dim=shard_dim))
    return replicate_dim, shard_dim
