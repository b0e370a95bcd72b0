"""A run's tensors on disk, through torch.distributed.checkpoint: written and read by as many processes as there are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tune.checkpoints.file_formats import PICKLE_ERRORS
from tune.errors import CheckpointError
from tune.training.saving.manifest import CHANGED_SINCE
from tune.utils.mesh import Mesh
from tune.utils.sharding import is_sharded

__all__ = ["first_line", "load_tensors", "save_tensors"]


def save_tensors(directory: Path, tensors: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Write tensors into `directory`; every process must call this with what it holds of them.

    Args:
        directory: the same on every process.
        tensors: by name.
        mesh: the processes of the run; in a thread, from `Mesh.for_thread`.

    Raises:
        OSError, RuntimeError: a file could not be written, by whichever process.
    """
    # Half a second of imports, needed only once something is saved.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    from tune.training.saving.state_writer import make_writer

    try:
        with warnings.catch_warnings():
            # It warns that there is one process, which is what no_dist says.
            warnings.simplefilter("ignore", UserWarning)
            is_alone = mesh.world_size == 1
            # Flushed where they are written: the process that writes the manifest may be on another machine.
            writer = make_writer(directory, flushed=not is_alone)
            dcp_save(dict(tensors), storage_writer=writer, process_group=mesh.host_group, no_dist=is_alone)
    except CheckpointException as error:  # not an Exception, so nobody else would catch it
        _pass_on_interrupt(error)
        raise RuntimeError(f"the optimizer state cannot be written: {first_line(error)}") from error


def load_tensors(
    directory: Path, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the saved tensors by key; those of a sharded weight sharded likewise, this process's part of them.

    Those of parts are sharded, and placed, as `like` has them.
    """
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
                key: _room_for(
                    like.get(key, weights.get(key.rpartition("/")[0])), stored.size, stored.properties.dtype
                )
                for key, stored in metadata.state_dict_metadata.items()
                if isinstance(stored, TensorStorageMetadata)  # we write nothing else
            }
            dcp_load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, *PICKLE_ERRORS) as error:
        _pass_on_interrupt(error)
        raise CheckpointError(f"{directory} cannot be read: {first_line(error)}. {CHANGED_SINCE}") from error
    return {key: tensor.to(like[key].device) if key in like else tensor for key, tensor in tensors.items()}


def _room_for(weight: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if weight is not None and is_sharded(weight) and weight.shape == shape:
        return torch.empty_like(weight, dtype=dtype).detach()
    return torch.empty(shape, dtype=dtype)


def _pass_on_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt if it is what torch has wrapped: a Ctrl-C is no failure of a file."""
    failures = getattr(error, "failures", None) or {}
    if any(isinstance(failure[0], KeyboardInterrupt) for failure in failures.values()):
        raise KeyboardInterrupt from None


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error's message, or its kind where it has none."""
    # A CheckpointException is made of what failed on each process.
    if failures := getattr(error, "failures", None):
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")
