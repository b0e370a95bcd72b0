"""A run's tensors on disk, through torch.distributed.checkpoint: written and read by as many processes as there are.

Its index file is a pickle, and a pickle can call anything. A saved step may come from a stranger, so the index is read
with a list of the few classes an index of tensors is made of. (The tensors are read weights-only by torch.)

Importing this takes half a second, which is spent once something is saved or resumed.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from tune.checkpoints.file_formats import PICKLE_ERRORS
from tune.checkpoints.manifest import CHANGED_SINCE
from tune.errors import CheckpointError, causes, first_line
from tune.utils.mesh import Mesh
from tune.utils.sharding import is_sharded

__all__ = ["load_tensors", "save_tensors"]

_METADATA = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in ALLOWED or is_dtype:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _read_member
        raise pickle.UnpicklingError(f"the index names {module}.{name}, which no index of tensors needs")


def _read_member(owner: Any, name: str) -> Any:
    """Return a member of the one enumeration in an index: Python 3.11 up to 3.11.3 pickles members as getattr's."""
    if owner is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise pickle.UnpicklingError("the index names builtins.getattr, which no index of tensors needs")
    return _MEM_FORMAT_ENCODING[name]


class _SafeReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata = _IndexUnpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("the index is not one of torch.distributed.checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _ExplainedWriter(FileSystemWriter):
    def write_data(self, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            # Of a full disk torch says `unexpected pos 704 vs 598`. The reason stands behind it, but does not travel
            # to other processes.
            raise next((link for link in causes(error) if isinstance(link, OSError)), error) from None


def save_tensors(directory: Path, tensors: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Write tensors into `directory`; every process must call this with what it holds of them.

    Args:
        directory: the same on every process.
        tensors: by name.
        mesh: the processes of the run; in a thread, from `Mesh.for_thread`.

    Raises:
        OSError, RuntimeError: a file could not be written, by whichever process.
    """
    try:
        with warnings.catch_warnings():
            # It warns that there is one process, which is what no_dist says.
            warnings.simplefilter("ignore", UserWarning)
            is_alone = mesh.world_size == 1
            # Flushed where they are written: the process that writes the manifest may be on another machine.
            writer = _ExplainedWriter(directory, sync_files=not is_alone)
            save(dict(tensors), storage_writer=writer, process_group=mesh.host_group, no_dist=is_alone)
    except CheckpointException as error:  # not an Exception, so nobody else would catch it
        _pass_on_interrupt(error)
        raise RuntimeError(f"the optimizer state cannot be written: {_reason(error)}") from error


def load_tensors(
    directory: Path, weights: Mapping[str, Tensor], like: Mapping[str, Tensor], *, is_torchs: bool = False
) -> dict[str, Tensor]:
    """Return the saved tensors by key; those of a sharded weight sharded likewise, this process's part of them.

    Those of parts are sharded, and placed, as `like` has them.

    Args:
        directory: as they were written.
        weights: those of the model, by name.
        like: what parts have now, by key.
        is_torchs: the optimizer is one of torch's own, of which it is known what it keeps for a weight.
    """
    reader = _SafeReader(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metadata = reader.read_metadata()
            _check_size(metadata, directory)
            if is_torchs:
                _check_index(metadata, weights, directory)
            tensors = {
                key: _room_for(
                    like.get(key, weights.get(key.rpartition("/")[0])), stored.size, stored.properties.dtype
                )
                for key, stored in metadata.state_dict_metadata.items()
                if isinstance(stored, TensorStorageMetadata)  # we write nothing else
            }
            load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, *PICKLE_ERRORS) as error:
        _pass_on_interrupt(error)
        raise CheckpointError(f"{directory} cannot be read: {_reason(error)}. {CHANGED_SINCE}") from error
    return {key: tensor.to(like[key].device) if key in like else tensor for key, tensor in tensors.items()}


def _check_size(metadata: Metadata, directory: Path) -> None:
    """Refuse an index of more than its files hold, before there is memory made for it: nothing in them is packed."""
    stored = [
        item for item in metadata.state_dict_metadata.values() if isinstance(item, TensorStorageMetadata)
    ]
    num_bytes = sum(torch.Size(item.size).numel() * item.properties.dtype.itemsize for item in stored)
    held = sum(file.stat().st_size for file in directory.iterdir())
    if num_bytes > held:
        raise CheckpointError(
            f"{directory}: its index says {num_bytes:,} bytes of tensors, and its files hold {held:,}."
        )


def _check_index(metadata: Metadata, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Refuse an index of tensors that no optimizer of torch's has of these weights."""
    names: dict[str, set[str]] = {}
    for key, stored in metadata.state_dict_metadata.items():
        name, _, of_it = str(key).rpartition("/")
        if name not in weights or not isinstance(stored, TensorStorageMetadata):
            continue  # who loads them says what is wrong
        shape, dtype, weight = tuple(stored.size), stored.properties.dtype, weights[name]
        # A factored second moment is a row or a column of it; 8 bits are looked up in a table of 256 values.
        fits = len(shape) <= max(weight.dim(), 1) and torch.Size(shape).numel() <= max(weight.numel(), 256)
        if not fits or (len(shape) == weight.dim() > 1 and any(map(int.__gt__, shape, weight.shape))):
            raise CheckpointError(
                f"{directory}: {key} is of shape {list(shape)}, but its weight of {list(weight.shape)}."
            )
        if len(shape) > 0 and not (dtype.is_floating_point or dtype.itemsize == 1):
            raise CheckpointError(f"{directory}: {key} is of type {dtype}, which no optimizer keeps.")
        names.setdefault(name, set()).add(of_it)
    # What one weight of some number of dimensions has, all of them have; in 8 bits only large ones are kept.
    for dim in {weights[name].dim() for name in names}:
        alike = {name: found for name, found in names.items() if weights[name].dim() == dim}
        expected = set().union(*alike.values())
        if any(of_it.startswith(("absmax", "qmap", "state1", "state2")) for of_it in expected):
            continue
        for name, found in alike.items():
            if missing := sorted(expected - found):
                raise CheckpointError(f"{directory}: {name}/{missing[0]} is missing.")


def _room_for(weight: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if weight is not None and is_sharded(weight) and weight.shape == shape:
        return torch.empty_like(weight, dtype=dtype).detach()
    return torch.empty(shape, dtype=dtype)


def _pass_on_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt if it is what torch has wrapped: a Ctrl-C is no failure of a file."""
    failures = getattr(error, "failures", None) or {}
    if any(isinstance(failure[0], KeyboardInterrupt) for failure in failures.values()):
        raise KeyboardInterrupt from None


def _reason(error: BaseException) -> str:
    # A CheckpointException is made of what failed on each process.
    if failures := getattr(error, "failures", None):
        error = next(iter(failures.values()))[0]
    return first_line(error).partition(". ")[0]
