"""The processes of a run: joined, asked to agree, and taken apart. With one process everything here is a no-op.

Two kinds of words are exchanged. Tensors on the device go through its own backend (nccl, or gloo on a CPU). What
hosts tell each other (counts, requests to stop, errors) goes through gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from tune.errors import TrainingError, TuneError
from tune.training.batches import TokenCounts
from tune.utils import get_rank, get_world_size, is_rank_zero

__all__ = [
    "add_over_ranks_",
    "count_over_ranks",
    "end_processes",
    "from_rank_zero",
    "gather_to_all",
    "max_over_ranks",
    "open_host_group",
    "seed_this_rank",
    "share_from_rank_zero",
    "start_processes",
    "sum_over_ranks",
]

T = TypeVar("T")

# Hosts wait for each other while one of them writes a large model or indexes a data set. Who dies meanwhile is seen by
# the launcher, so no shorter patience is needed.
HOST_PATIENCE = timedelta(days=1)

_host_group: Any = None
_joined_here = False


def start_processes(device: torch.device) -> None:
    """Join the other processes that the launcher started, if there are any.

    Args:
        device: of this process; each needs one of its own, except on a CPU.

    Raises:
        TrainingError: the processes cannot reach each other, or the device has no way to talk.
    """
    global _host_group, _joined_here
    world_size = get_world_size()
    if world_size == 1:
        return
    import torch.distributed as dist

    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"{world_size} processes cannot work together on {device.type}; use cpu or cuda.")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
            _joined_here = True
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(
                f"the {world_size} processes of this run could not find each other: {reason}. Start them with "
                "`tune run --nproc_per_node N ...`, or torchrun."
            ) from error
    _host_group = open_host_group()
    if device.type == "cuda":
        _require_own_devices(device)


def open_host_group() -> Any:
    """Return a further group of all processes for words between hosts; None where there is one process.

    A thread that talks while another one does needs a group of its own. Every process must call this.
    """
    if get_world_size() == 1:
        return None
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=HOST_PATIENCE)


def end_processes() -> None:
    """Leave the other processes; does nothing where none were joined, or where somebody else joined them."""
    global _host_group, _joined_here
    if get_world_size() == 1:
        return
    import torch.distributed as dist

    if sys.exc_info()[0] is not None and torch.cuda.is_available():
        return  # a run that has failed waits for nobody
    if dist.is_initialized() and _joined_here:
        _joined_here = False
        # What still holds a group when the interpreter ends takes gloo down with an abort: seen in a third of the
        # runs without this line, in none with it.
        gc.collect()
        dist.destroy_process_group()
    _host_group = None


def from_rank_zero(make: Callable[[], T], group: Any = None) -> T:
    """Return on every process what `make` returns on the first, where alone it is called.

    Whether it succeeded is known to all: what it raises there is raised everywhere, so none waits for ever.

    Args:
        make: its result can be pickled.
        group: from `open_host_group`; None: the main one.

    Raises:
        Exception: as `make` raises, or because its result cannot be pickled.
    """
    if get_world_size() == 1:
        return make()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]  # the result, pickled; or an error
    if is_rank_zero():
        try:
            made = make()
            outcome[0] = pickle.dumps(made)
        except Exception as error:
            # Whatever it is: the others wait for word, and the process may live on where this is a thread of it.
            outcome[1] = _as_sent(error)
            dist.broadcast_object_list(outcome, src=0, group=group or _host_group)
            raise
        dist.broadcast_object_list(outcome, src=0, group=group or _host_group)
        return made
    dist.broadcast_object_list(outcome, src=0, group=group or _host_group)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = pickle.loads(outcome[0])
    return result


def share_from_rank_zero(value: T, group: Any = None) -> T:
    """Return on every process the value that the first one gave; every process must call this."""
    if get_world_size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, group=group or _host_group)
    return values[0]


def gather_to_all(value: T, group: Any = None) -> list[T]:
    """Return the value that each process gave, by rank; every process must call this."""
    world_size = get_world_size()
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value, group=group or _host_group)
    return values


def count_over_ranks(counts: TokenCounts) -> TokenCounts:
    """Return the counts of all processes together."""
    if get_world_size() == 1:
        return counts
    numbers = torch.tensor([counts.num_tokens, counts.num_targets, counts.sum_of_squares])
    return TokenCounts(*_reduce(numbers, "SUM").tolist())


def sum_over_ranks(number: int) -> int:
    """Return the sum of the whole numbers that the processes gave."""
    return number if get_world_size() == 1 else int(_reduce(torch.tensor([number]), "SUM"))


def max_over_ranks(number: float) -> float:
    """Return the largest number that a process gave."""
    if get_world_size() == 1:
        return number
    return float(_reduce(torch.tensor([number], dtype=torch.float64), "MAX"))


def add_over_ranks_(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place, on its device; return it."""
    if get_world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def seed_this_rank(seed: int) -> None:
    """From here on let each process draw other numbers (for dropout); the first goes on as it would alone."""
    if not is_rank_zero():
        torch.manual_seed((seed + get_rank() * 0x9E3779B97F4A7C15) % 2**63)


def _reduce(numbers: Tensor, operation: str) -> Tensor:
    import torch.distributed as dist

    dist.all_reduce(numbers, getattr(dist.ReduceOp, operation), group=_host_group)
    return numbers


def _as_sent(error: Exception) -> Exception:
    """Return the error as another process can raise it."""
    if isinstance(error, (TuneError, OSError, RuntimeError, ValueError)):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # noqa: BLE001 - errors of libraries fail to be pickled, or to come back, in every way
            return TrainingError(str(error))
    return TrainingError(f"the first process ended with {type(error).__name__}: {error}")


def _require_own_devices(device: torch.device) -> None:
    import platform

    places = gather_to_all((platform.node(), device.index))
    if len(set(places)) < len(places):
        raise TrainingError(
            f"{len(places)} processes were started, but several of them are on the same GPU {device}. Set "
            "device=cuda, which gives each its own, or start as many processes as there are GPUs."
        )
