"""What exact resuming needs besides the weights, and how it is kept.

`state/optimizer/` holds the optimizer's tensors, by weight and name, through torch.distributed.checkpoint: the
format that shards them over processes. `state/run.pt` holds everything else, plain values and random states.
Neither can execute code when read: the first is read with a list of allowed classes, the second weights-only.
"""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tune.errors import CheckpointError

__all__ = ["Stateful", "get_rng_state", "load_run_state", "read_run", "save_run_state", "set_rng_state"]


class Stateful(Protocol):
    """Something whose state is a dictionary: a schedule, a sampler, a scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


OPTIMIZER_DIR = "optimizer"
RUN_FILE = "run.pt"
VERSION = 1


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator a run may draw from: Python, numpy, torch, the GPU."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": (
            int(numpy_state["state"]["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every random generator where `get_rng_state` found it."""
    random.setstate(state["python"])
    position, has_gauss, gauss = state["numpy_rest"]
    key = state["numpy_key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_run_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    run: Mapping[str, Any],
    parts: Mapping[str, Stateful],
) -> None:
    """Write all that exact resuming needs besides the weights into `directory`.

    Args:
        directory: created if missing.
        model: gives the weights' names, under which their optimizer state is kept.
        optimizer: its state per weight; groups' settings too.
        device: whose random state is saved, beside the host's.
        run: where the run stands: numbers, text, and containers of them.
        parts: further objects with a state: schedule, sampler, scaler.

    Raises:
        OSError, RuntimeError: a file could not be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    # Optimizers keep some tensors beside their weight and some on the host; each must come back to its place.
    on_host = sorted(key for key, tensor in tensors.items() if tensor.device.type == "cpu")
    if tensors:
        _save_tensors(directory / OPTIMIZER_DIR, tensors)
    content = {
        "version": VERSION,
        "run": dict(run),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "rng": get_rng_state(device),
        "groups": groups,
        "plain": plain,
        "on_host": on_host,
        "has_tensors": bool(tensors),
    }
    torch.save(content, directory / RUN_FILE)


def load_run_state(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    device: torch.device,
    parts: Mapping[str, Stateful],
) -> None:
    """Put the saved state into optimizer, parts and, last, the random generators; arguments as for saving.

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
    tensors = _load_tensors(directory / OPTIMIZER_DIR) if content["has_tensors"] else {}
    on_host = set(content["on_host"])
    for full_key, tensor in tensors.items():
        name, _, key = full_key.rpartition("/")
        if name not in weights:
            raise CheckpointError(
                f"{directory}: the saved optimizer state is of a weight {name!r}, not in this model."
            )
        weight = weights[name]
        optimizer.state[weight][key] = tensor if full_key in on_host else tensor.to(weight.device)
    for name, values in content["plain"].items():
        optimizer.state[weights[name]].update(values)
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update(saved)
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    set_rng_state(content["rng"], device)


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
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{directory / RUN_FILE} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CheckpointError(
            f"{directory / RUN_FILE} is not the state of a run as this version of tune writes it."
        )
    return content


def _save_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
    # Half a second of imports, needed only once something is saved.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    try:
        with warnings.catch_warnings():
            # It warns that there is one process, which is what no_dist says.
            warnings.simplefilter("ignore", UserWarning)
            # write_step() flushes every file itself.
            writer = FileSystemWriter(directory, sync_files=False)
            dcp_save(tensors, storage_writer=writer, no_dist=True)
    except CheckpointException as error:  # not an Exception, so nobody else would catch it
        causes = [failure[0] for failure in error.failures.values()]
        raise RuntimeError(
            f"the optimizer state cannot be written: {causes[0] if causes else error}"
        ) from error


def _load_tensors(directory: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    from tune.training.state_reader import make_safe_reader

    reader = make_safe_reader(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metadata = reader.read_metadata()
            tensors = {
                key: torch.empty(stored.size, dtype=stored.properties.dtype)
                for key, stored in metadata.state_dict_metadata.items()
                if isinstance(stored, TensorStorageMetadata)  # we write nothing else
            }
            dcp_load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{directory} cannot be read: {_first_line(error)}") from error
    return tensors


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
