"""The processes of a run as one mesh: which of them this is, and what they tell each other.

One process alone needs no other: then everything here is a no-op.

Two kinds of words are exchanged. Tensors on the device go through its own backend (nccl, or gloo on a CPU). What
hosts tell each other (counts, requests to stop, errors) goes through gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import gc
import pickle
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tune.errors import TrainingError, TuneError, first_line
from tune.utils.exclusions import Choices, split_processes
from tune.utils.ranks import get_rank, get_world_size

__all__ = ["Mesh", "init_mesh"]

T = TypeVar("T")

# Hosts wait for each other while one of them writes a large model or indexes a data set. Who dies meanwhile is seen by
# the launcher, so no shorter patience is needed.
HOST_PATIENCE = timedelta(days=1)
_CPU = torch.device("cpu")


@dataclass(eq=False)
class Mesh:
    """The processes of a run in two named dimensions, `replicate` and `shard`; `init_mesh` makes it, once.

    Both dimensions are data-parallel: each process has batches of its own. A tensor-parallel one would come last, its
    processes sharing a batch; so who splits data asks for `data_parallel_rank`, and who writes a file for `rank`.

    Every process must call the methods that exchange something, in the same order. `Mesh()` is one process.

    Args:
        device: of this process.
        rank: of this process among all.
        world_size: processes of the run.
        replicate_dim: copies of the model.
        shard_dim: processes that one copy is cut over, where it is cut.
        device_mesh: for `fully_shard`, with the dimensions' names; None for one process.
        host_group: what hosts tell each other goes through it; None for one process.
        joined: the processes were brought together here, and are parted by `close`.
    """

    device: torch.device = _CPU
    rank: int = 0
    world_size: int = 1
    replicate_dim: int = 1
    shard_dim: int = 1
    device_mesh: Any = None
    host_group: Any = None
    joined: bool = False

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    @property
    def data_parallel_size(self) -> int:
        """Parts that each batch of the whole run is split into."""
        return self.replicate_dim * self.shard_dim

    @property
    def data_parallel_rank(self) -> int:
        """Number of the part that is this process's."""
        return self.rank // (self.world_size // self.data_parallel_size)

    @property
    def shards(self) -> bool:
        """Whether one copy of the model is cut over several processes."""
        return self.shard_dim > 1

    def from_rank_zero(self, make: Callable[[], T]) -> T:
        """Return on every process what `make` returns on the first, where alone it is called.

        Whether it succeeded is known to all: what it raises there is raised everywhere, so none waits for ever.

        Args:
            make: its result can be pickled.

        Raises:
            Exception: as `make` raises, or because its result cannot be pickled.
        """
        if self.world_size == 1:
            return make()
        made: Any = None
        outcome: tuple[bytes, Exception | None] = b"", None  # the result, pickled; or an error
        if self.is_rank_zero:
            try:
                made = make()
                outcome = pickle.dumps(made), None
            except Exception as error:
                # Whatever it is: the others wait for word, and the process may live on where this is a thread of it.
                self.broadcast((b"", _as_sent(error)))
                raise
        pickled, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        result: T = made if self.is_rank_zero else pickle.loads(pickled)
        return result

    def broadcast(self, value: T) -> T:
        """Return on every process the value that the first one gave."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def gather_to_all(self, value: T) -> list[T]:
        """Return the value that each process gave, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.host_group)
        return values

    def max(self, number: float) -> float:
        """Return the largest number that a process gave."""
        return float(self._reduce(torch.tensor([number], dtype=torch.float64), "MAX"))

    def sum(self, number: int) -> int:
        """Return the sum of the numbers that the processes gave."""
        return self.sums([number])[0]

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """Return the sum of each of some numbers over all processes, in one message."""
        return self._reduce(torch.tensor(numbers), "SUM").tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, on its device; return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum_(self, tensor: Tensor) -> Any:
        """Begin to add up a tensor over several processes; return what is to be waited for before it is read."""
        return dist.all_reduce(tensor, async_op=True)

    def _reduce(self, numbers: Tensor, operation: str) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(numbers, getattr(dist.ReduceOp, operation), group=self.host_group)
        return numbers

    def for_thread(self) -> Mesh:
        """Return the same mesh for a thread that talks while another one does: with a host group of its own."""
        return replace(self, host_group=_open_host_group() if self.world_size > 1 else None, joined=False)

    def close(self) -> None:
        """Leave the other processes; does nothing where somebody else has joined them."""
        self.host_group = self.device_mesh = None
        if not self.joined:
            return
        if sys.exc_info()[0] is not None and torch.cuda.is_available():
            return  # a run that has failed waits for nobody
        self.joined = False
        # What still holds a group when the interpreter ends takes gloo down with an abort: seen in a third of the
        # runs without this line, in none with it.
        gc.collect()
        dist.destroy_process_group()


def init_mesh(device: torch.device, choices: Choices | None = None) -> Mesh:
    """Join the other processes that the launcher started, if there are any, and return the mesh of all of them.

    Args:
        device: of this process; each needs one of its own, except on a CPU.
        choices: how the processes are split, and what they have to carry out; None shards over all of them.

    Raises:
        ConfigError: the split needs another number of processes, or these cannot do what is asked for.
        TrainingError: the processes cannot reach each other, or the device has no way to talk.
    """
    world_size = get_world_size()
    replicate_dim, shard_dim = split_processes(replace(choices or Choices(), world_size=world_size))
    if world_size == 1:
        return Mesh(device)
    joined = _join(world_size, device)
    mesh = Mesh(device, get_rank(), world_size, replicate_dim, shard_dim, joined=joined)
    mesh.host_group = _open_host_group()
    if device.type == "cuda":
        _require_own_devices(mesh)
    mesh.device_mesh = init_device_mesh(
        device.type, (replicate_dim, shard_dim), mesh_dim_names=("replicate", "shard")
    )
    return mesh


def _join(world_size: int, device: torch.device) -> bool:
    """Bring the processes together; return False where somebody else has done so."""
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"{world_size} processes cannot work together on {device.type}; use cpu or cuda.")
    if dist.is_initialized():
        return False
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {world_size} processes of this run could not find each other: {first_line(error)}. Start them with "
            "`tune run --nproc_per_node N ...`, or torchrun."
        ) from error
    return True


def _open_host_group() -> Any:
    return dist.new_group(backend="gloo", timeout=HOST_PATIENCE)


def _require_own_devices(mesh: Mesh) -> None:
    places = mesh.gather_to_all((platform.node(), mesh.device.index))
    if len(set(places)) < len(places):
        raise TrainingError(
            f"{len(places)} processes were started, but several of them are on the same GPU {mesh.device}. Set "
            "device=cuda, which gives each its own, or start as many processes as there are GPUs."
        )


def _as_sent(error: Exception) -> Exception:
    """Return the error as another process can raise it."""
    if isinstance(error, (TuneError, OSError, RuntimeError, ValueError)):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # noqa: BLE001 - errors of libraries fail to be pickled, or to come back, in every way
            return TrainingError(str(error))
    return TrainingError(f"the first process ended with {type(error).__name__}: {error}")
