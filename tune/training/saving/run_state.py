"""What exact resuming needs besides the weights, and how it is kept.

`state/optimizer/` holds all tensors, the optimizer's by weight and name and those of further parts, through
torch.distributed.checkpoint: each process writes what it holds, and reads what it needs, whatever their number was.
`state/run.pt` holds everything else, plain values.
Neither can execute code when read: the first is read with a list of allowed classes, the second weights-only.

The states of random generators are not among it: what a step draws follows from seed, step and process
(`TrainState.seed_next_step`). `Checkpoints` seeds whenever it saves or restores a step, so a loop of one's own that
never does so also draws the same after a resume. Older versions saved those states, right after such a seeding: with
their steps they are passed over.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tune.checkpoints.file_formats import PICKLE_ERRORS
from tune.checkpoints.manifest import CHANGED_SINCE
from tune.errors import CheckpointError, first_line
from tune.training.optimizers import restore_paged_state
from tune.training.saving.run_fields import check_content, check_group, check_part
from tune.training.saving.shared_folder import require_all_written
from tune.training.train_state import Stateful
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = [
    "RunSnapshot",
    "capture_run_state",
    "load_run_state",
    "read_run",
    "write_run_state",
]


TENSORS_DIR = "optimizer"
PARTS = "parts"  # what the names of parts' tensors begin with; a weight's name has no slash
RUN_FILE = "run.pt"
REFERENCE = "tensor in " + TENSORS_DIR  # the one key of what stands for a tensor in a part's state
# What a part raises where its saved state is not one of its kind.
_UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
VERSION = 3  # which is 2 without random states


@dataclass(frozen=True)
class RunSnapshot:
    """All that exact resuming needs besides the weights, at one moment.

    Args:
        tensors: by name, of optimizer and parts; of sharded ones this process's part.
        content: everything else, the same on every process.
    """

    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]


def capture_run_state(
    model: nn.Module,
    optimizer: Optimizer,
    run: Mapping[str, Any],
    parts: Mapping[str, Stateful],
    *,
    copied: bool = False,
) -> RunSnapshot:
    """Return the state of a run as it is now, of sharded tensors this process's part.

    Args:
        model: gives the weights' names, under which their optimizer state is kept.
        optimizer: its state per weight; groups' settings too.
        run: where the run stands: numbers, text, and containers of them.
        parts: further objects with a state: schedule, sampler, scaler, averaged weights.
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
    states = {
        name: _take_tensors(part.state_dict(), f"{PARTS}/{name}", tensors) for name, part in parts.items()
    }
    content = {
        "version": VERSION,
        "run": dict(run),
        "parts": states,
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


def _take_tensors(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a state with a reference in place of each tensor, which goes into `tensors` under a name of its own."""
    if isinstance(state, Tensor):
        tensors[name] = state
        return {REFERENCE: name}
    return _map_values(state, lambda key, value: _take_tensors(value, f"{name}/{key}", tensors))


def _put_tensors(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a state with its tensors back in their places."""
    if isinstance(state, Mapping) and state.keys() == {REFERENCE}:
        return tensors[state[REFERENCE]]
    return _map_values(state, lambda _, value: _put_tensors(value, tensors))


def _map_values(state: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Return a mapping, list or tuple with its values changed; whatever has none that changes stays what it is."""
    if isinstance(state, Mapping):
        changed = {key: change(key, value) for key, value in state.items()}
        return changed if any(changed[key] is not value for key, value in state.items()) else state
    if isinstance(state, (list, tuple)):
        values = [change(index, value) for index, value in enumerate(state)]
        return values if any(new is not old for new, old in zip(values, state, strict=True)) else state
    return state


def write_run_state(directory: Path, snapshot: RunSnapshot, mesh: Mesh) -> None:
    """Write a snapshot into `directory`, created if missing; every process must call this with its own.

    Args:
        directory: the same on every process, on a disk that all of them see.
        snapshot: from `capture_run_state`.
        mesh: the processes of the run; in a thread, from `Mesh.for_thread`.

    Raises:
        OSError, RuntimeError: a file could not be written, by whichever process.
        CheckpointError: the first process does not see what another one wrote.
    """
    if snapshot.content["has_tensors"]:
        from tune.training.saving.state_tensors import save_tensors

        save_tensors(directory / TENSORS_DIR, snapshot.tensors, mesh)
        require_all_written(directory / TENSORS_DIR, f"__{mesh.rank}_*", mesh)
    mesh.from_rank_zero(lambda: _write_run_file(directory, snapshot.content))


def load_run_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    parts: Mapping[str, Stateful],
    *,
    settings_changed: bool = False,
    allow_lost_parts: bool = False,
) -> None:
    """Put the saved state into optimizer and parts.

    Args:
        directory, model, optimizer, parts: as for saving.
        settings_changed: what optimizer and schedule are set to now is meant, and stays: only what they have
            gathered, and how far the schedule has come, is taken over.
        allow_lost_parts: what was saved of a part that is no longer tracked is left behind, with a warning.

    Raises:
        CheckpointError: the state cannot be read, or is of other weights or another optimizer, or of a part that
            is no longer tracked.
    """
    content = _read_run_file(directory)
    _check_lost_parts(directory, content["parts"], parts, allow_lost_parts)
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
    # What a tensor is to be like: as the weight it belongs to, or as the part has it now.
    like: dict[str, Tensor] = {}
    for name, part in parts.items():
        _take_tensors(part.state_dict(), f"{PARTS}/{name}", like)
    tensors: dict[str, Tensor] = {}
    if content["has_tensors"] != (directory / TENSORS_DIR).exists():
        raise CheckpointError(
            f"{directory / RUN_FILE}: has_tensors is {content['has_tensors']}, unlike {TENSORS_DIR}/ beside it."
        )
    if content["has_tensors"]:
        from tune.training.saving.state_tensors import load_tensors

        is_torchs = type(optimizer).__module__.startswith("torch.optim")
        tensors = load_tensors(directory / TENSORS_DIR, weights, like, is_torchs=is_torchs)
    on_host = set(content["on_host"])
    for full_key, tensor in tensors.items():
        name, _, key = full_key.rpartition("/")
        if is_other or full_key.startswith(f"{PARTS}/"):
            continue
        weight = _weight_of(name, weights, directory)
        optimizer.state[weight][key] = tensor.cpu() if full_key in on_host else tensor.to(weight.device)
    for name, values in content["plain"].items() if not is_other else ():
        optimizer.state[_weight_of(name, weights, directory)].update(values)
    file = directory / RUN_FILE
    if not settings_changed:
        for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
            check_group(number, saved, group, file)
            group.update(saved)
    restore_paged_state(optimizer)
    for name, part in parts.items():
        state = content["parts"].get(name)
        check_part(name, part, state or {}, file)
        if settings_changed and isinstance(part, LRScheduler):
            _advance(part, (state or {}).get("last_epoch", content["run"]["step"]))
        elif settings_changed and isinstance(part, GradScaler) and not (state and part.is_enabled()):
            continue  # loss scaling begins now, or is over
        elif state is None and part.state_dict():
            raise CheckpointError(f"{directory}: nothing was saved of {name}.")
        else:
            try:
                part.load_state_dict(_put_tensors(state or {}, tensors))
            except _UNFIT as error:
                raise CheckpointError(
                    f"{file}: the state of {name} ({type(part).__name__}) does not fit it: {first_line(error)}."
                ) from error


def _check_lost_parts(
    directory: Path, saved: Mapping[str, Any], parts: Mapping[str, Stateful], allowed: bool
) -> None:
    """Refuse to go on without what was saved of a part, such as an average of the weights; warn where allowed."""
    lost = [name for name, state in saved.items() if state and name not in parts]
    if not lost:
        return
    names = ", ".join(lost)
    if not allowed:
        raise CheckpointError(
            f"{directory}: it was saved with the state of {names}, which is not tracked now. Track it again, or go "
            "on without it: allow_changes_on_resume=true"
        )
    get_logger().warning(f"The saved state of {names} is left behind: it is not tracked now.")


def _weight_of(name: str, weights: Mapping[str, Tensor], directory: Path) -> Tensor:
    if name not in weights:
        raise CheckpointError(
            f"{directory}: the saved optimizer state is of a weight {name!r}, not in this model."
        )
    return weights[name]


def _advance(schedule: LRScheduler, num_steps: int) -> None:
    """Bring a new schedule to where `num_steps` optimizer steps would have brought it."""
    with warnings.catch_warnings():
        # It misses the optimizer's steps, which were taken before.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(num_steps):
            schedule.step()


def read_run(directory: Path) -> dict[str, Any]:
    """Return where the saved run stood: what `capture_run_state` was given as `run`; and the state of its sampler.

    Raises:
        CheckpointError: the file is missing or not ours.
    """
    content = _read_run_file(directory)
    place = content["parts"].get("sampler", {})
    return {**content["run"], **({"sampler": place} if "position" in place else {})}


def _read_run_file(directory: Path) -> dict[str, Any]:
    try:
        content = torch.load(directory / RUN_FILE, map_location="cpu", weights_only=True)
    except PICKLE_ERRORS as error:
        raise CheckpointError(
            f"{directory / RUN_FILE} cannot be read: {first_line(error)}. {CHANGED_SINCE}"
        ) from error
    if not isinstance(content, dict) or content.get("version") not in (2, VERSION):
        raise CheckpointError(
            f"{directory / RUN_FILE} is not the state of a run as this version of tune writes it."
        )
    check_content(content, directory / RUN_FILE)
    return content


def _write_run_file(directory: Path, content: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # A few kilobytes, through memory: of a file that cannot be written torch says only that it cannot.
    buffer = io.BytesIO()
    try:
        torch.save(dict(content), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PicklingError, *PICKLE_ERRORS) as error:
        raise CheckpointError(
            f"a state that is saved with the run could not be read again: {first_line(error)}. State dictionaries "
            "hold tensors, numbers, text, and containers of them"
        ) from error
    (directory / RUN_FILE).write_bytes(buffer.getbuffer())
