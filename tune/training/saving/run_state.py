"""What exact resuming needs besides the weights, and how it is kept.

`state/optimizer/` holds the optimizer's tensors, by weight and name, through torch.distributed.checkpoint: each process
writes what it holds, and reads what it needs, whatever their number was. `state/run.pt` holds everything else, plain
values and the random states of every process.
Neither can execute code when read: the first is read with a list of allowed classes, the second weights-only.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tune.checkpoints.file_formats import PICKLE_ERRORS
from tune.errors import CheckpointError
from tune.training.distributed.processes import from_rank_zero, gather_to_all, seed_this_rank
from tune.training.optimizers import restore_paged_state
from tune.training.saving.manifest import CHANGED_SINCE
from tune.training.saving.random_state import get_rng_state, set_rng_state
from tune.training.saving.shared_folder import require_all_written
from tune.utils import get_logger, get_rank, get_world_size
from tune.utils.sharding import is_sharded

__all__ = [
    "RunSnapshot",
    "Stateful",
    "capture_run_state",
    "load_run_state",
    "read_run",
    "save_run_state",
    "write_run_state",
]


class Stateful(Protocol):
    """Something whose state is a dictionary: a schedule, a sampler, a scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


OPTIMIZER_DIR = "optimizer"
RUN_FILE = "run.pt"
VERSION = 2


@dataclass(frozen=True)
class RunSnapshot:
    """All that exact resuming needs besides the weights, at one moment.

    Args:
        tensors: the optimizer's, by weight and name; of sharded ones this process's part.
        content: everything else, the same on every process.
    """

    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]


def capture_run_state(
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    run: Mapping[str, Any],
    parts: Mapping[str, Stateful],
    *,
    copied: bool = False,
) -> RunSnapshot:
    """Return the state of a run as it is now; every process must call this.

    Args:
        model: gives the weights' names, under which their optimizer state is kept.
        optimizer: its state per weight; groups' settings too.
        device: whose random state is saved, beside the host's.
        run: where the run stands: numbers, text, and containers of them.
        parts: further objects with a state: schedule, sampler, scaler.
        copied: tensors are copied to the host, so that training may go on while they are written.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    # Optimizers keep some tensors beside their weight and some on the host; each must come back to its place.
    on_host = sorted(key for key, tensor in tensors.items() if tensor.device.type == "cpu")
    content = {
        "version": VERSION,
        "run": dict(run),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "rng": gather_to_all(get_rng_state(device)),
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "kind": type(optimizer).__name__,
        "plain": plain,
        "on_host": on_host,
        "has_tensors": bool(tensors),
    }
    if copied:
        tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
        content = copy.deepcopy(content)
    return RunSnapshot(tensors, content)


def write_run_state(directory: Path, snapshot: RunSnapshot, group: Any = None) -> None:
    """Write a snapshot into `directory`, created if missing; every process must call this with its own.

    Args:
        directory: the same on every process, on a disk that all of them see.
        snapshot: from `capture_run_state`.
        group: processes talk through it, see `tune.training.distributed.processes.open_host_group`.

    Raises:
        OSError, RuntimeError: a file could not be written, by whichever process.
        CheckpointError: the first process does not see what another one wrote.
    """
    if snapshot.content["has_tensors"]:
        _save_tensors(directory / OPTIMIZER_DIR, snapshot.tensors, group)
        require_all_written(directory / OPTIMIZER_DIR, f"__{get_rank()}_*", group)
    from_rank_zero(lambda: _write_run_file(directory, snapshot.content), group)


def save_run_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    run: Mapping[str, Any],
    parts: Mapping[str, Stateful],
) -> None:
    """Write all that exact resuming needs besides the weights into `directory`, which is created if missing.

    Arguments are those of `capture_run_state`.

    Raises:
        OSError, RuntimeError: a file could not be written.
    """
    write_run_state(directory, capture_run_state(model, optimizer, device, run, parts))


def load_run_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    parts: Mapping[str, Stateful],
    *,
    settings_changed: bool = False,
) -> None:
    """Put the saved state into optimizer, parts and, last, the random generators.

    Args:
        directory, model, optimizer, device, parts: as for saving.
        settings_changed: what optimizer and schedule are set to now is meant, and stays: only what they have
            gathered, and how far the schedule has come, is taken over.

    Raises:
        CheckpointError: the state cannot be read, or is of other weights or another optimizer.
    """
    content = _read_run_file(directory)
    weights = dict(model.named_parameters())
    groups = content["groups"]
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{directory}: the saved optimizer has {len(groups)} parameter groups, this one has "
            f"{len(optimizer.param_groups)}. optimizer and optimizer_in_bwd must be as they were."
        )
    is_other = settings_changed and content["kind"] != type(optimizer).__name__
    if is_other:
        get_logger().warning(
            f"{type(optimizer).__name__} begins anew: what was saved are averages of {content['kind']}."
        )
    has_tensors = content["has_tensors"] and not is_other
    tensors = _load_tensors(directory / OPTIMIZER_DIR, weights) if has_tensors else {}
    on_host = set(content["on_host"])
    for full_key, tensor in tensors.items():
        name, _, key = full_key.rpartition("/")
        if name not in weights:
            raise CheckpointError(
                f"{directory}: the saved optimizer state is of a weight {name!r}, not in this model."
            )
        weight = weights[name]
        optimizer.state[weight][key] = tensor.cpu() if full_key in on_host else tensor.to(weight.device)
    for name, values in content["plain"].items() if not is_other else ():
        optimizer.state[weights[name]].update(values)
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        if not settings_changed:
            group.update(saved)
    restore_paged_state(optimizer)
    for name, part in parts.items():
        state = content["parts"].get(name)
        if settings_changed and isinstance(part, LRScheduler):
            _advance(part, state["last_epoch"] if state else content["run"]["step"])
        elif state is None:
            raise CheckpointError(f"{directory}: nothing was saved of {name}.")
        else:
            part.load_state_dict(state)
    states = content["rng"]
    set_rng_state(states[get_rank()] if get_rank() < len(states) else states[0], device)
    if get_rank() >= len(states):
        seed_this_rank(torch.initial_seed())  # a process more than there were


def _advance(schedule: LRScheduler, num_steps: int) -> None:
    """Bring a new schedule to where `num_steps` optimizer steps would have brought it."""
    with warnings.catch_warnings():
        # It misses the optimizer's steps, which were taken before.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(num_steps):
            schedule.step()


def read_run(directory: Path) -> dict[str, Any]:
    """Return where the saved run stood: what `save_run_state` was given as `run`.

    Raises:
        CheckpointError: the file is missing or not ours.
    """
    run: dict[str, Any] = _read_run_file(directory)["run"]
    return run


def _read_run_file(directory: Path) -> dict[str, Any]:
    """Return the content of `state/run.pt`.

    Raises:
        CheckpointError: the file is missing or not ours.
    """
    try:
        content = torch.load(directory / RUN_FILE, map_location="cpu", weights_only=True)
    except PICKLE_ERRORS as error:
        raise CheckpointError(
            f"{directory / RUN_FILE} cannot be read: {_first_line(error)}. {CHANGED_SINCE}"
        ) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CheckpointError(
            f"{directory / RUN_FILE} is not the state of a run as this version of tune writes it."
        )
    return content


def _write_run_file(directory: Path, content: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # A few kilobytes, through memory: of a file that cannot be written torch says only that it cannot.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    (directory / RUN_FILE).write_bytes(buffer.getbuffer())


def _save_tensors(directory: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
    # Half a second of imports, needed only once something is saved.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    from tune.training.saving.state_writer import make_writer

    try:
        with warnings.catch_warnings():
            # It warns that there is one process, which is what no_dist says.
            warnings.simplefilter("ignore", UserWarning)
            is_alone = get_world_size() == 1
            # Flushed where they are written: the process that writes the manifest may be on another machine.
            writer = make_writer(directory, flushed=not is_alone)
            dcp_save(dict(tensors), storage_writer=writer, process_group=group, no_dist=is_alone)
    except CheckpointException as error:  # not an Exception, so nobody else would catch it
        _pass_on_interrupt(error)
        raise RuntimeError(f"the optimizer state cannot be written: {_first_line(error)}") from error


def _load_tensors(directory: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the saved tensors by key; those of a sharded weight sharded likewise, this process's part of them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    from tune.training.saving.state_reader import make_safe_reader

    reader = make_safe_reader(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metadata = reader.read_metadata()
            tensors = {
                key: _room_for(weights.get(key.rpartition("/")[0]), stored.size, stored.properties.dtype)
                for key, stored in metadata.state_dict_metadata.items()
                if isinstance(stored, TensorStorageMetadata)  # we write nothing else
            }
            dcp_load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, *PICKLE_ERRORS) as error:
        _pass_on_interrupt(error)
        raise CheckpointError(f"{directory} cannot be read: {_first_line(error)}. {CHANGED_SINCE}") from error
    return tensors


def _room_for(weight: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if weight is not None and is_sharded(weight) and weight.shape == shape:
        return torch.empty_like(weight, dtype=dtype).detach()
    return torch.empty(shape, dtype=dtype)


def _pass_on_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt if it is what torch has wrapped: a Ctrl-C is no failure of a file."""
    failures = getattr(error, "failures", None) or {}
    if any(isinstance(failure[0], KeyboardInterrupt) for failure in failures.values()):
        raise KeyboardInterrupt from None


def _first_line(error: BaseException) -> str:
    """Return the first sentence of an error's message, or its kind where it has none."""
    # A CheckpointException is made of what failed on each process.
    if failures := getattr(error, "failures", None):
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")
