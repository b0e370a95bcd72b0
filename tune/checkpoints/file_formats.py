"""Weight files of each format: what tensors they hold, and one tensor at a time.

Only safetensors and pickles restricted to weights are read, memory-mapped where the format allows it.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tune.checkpoints.meta_shards import merged_shape, merged_tensor
from tune.checkpoints.pickle_check import (
    MAX_TENSORS,
    describe_kind,
    refuse_archive_bomb,
    refuse_repeated_storage,
)
from tune.errors import CheckpointError

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MAX_HEADER_BYTES = 2**24  # some 100 for each tensor
# What reading a pickle is known to raise where the file is cut short, corrupt, or not one of weights.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # the format's own name where it is no plain floating-point type
    file: Path
    span: tuple[int, int] | None = (
        None  # of its bytes in the file, where they stand there one after the other
    )


class WeightFile(Protocol):
    """One opened file, or several that are cut alike."""

    infos: dict[str, TensorInfo]

    def read(self, name: str) -> Tensor: ...

    def release(self) -> None:
        """Give back memory that reading has taken; the tensors that were read stay what they are."""


class SafetensorsFile:
    """A .safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.infos: dict[str, TensorInfo] = {}
        try:
            header = _read_header(path)
            if (number := header.count(b'"data_offsets"')) > MAX_TENSORS:
                raise CheckpointError(f"{path} holds {number} tensors; {MAX_TENSORS} are read at most")
            self._open()  # which judges the header
            entries = json.loads(header)
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                dtype = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
                start, end = (len(header) + 8 + offset for offset in entry["data_offsets"])
                self.infos[name] = TensorInfo(tuple(entry["shape"]), dtype, path, (start, end))
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def read(self, name: str) -> Tensor:
        # Opened for each tensor: the file's pages count as this process's memory for as long as it is mapped.
        try:
            tensor: Tensor = self._open().get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self._path, error) from error
        return tensor

    def release(self) -> None:
        pass

    def _open(self) -> Any:
        try:
            return safe_open(self._path, framework="pt", device="cpu")
        except RuntimeError as error:
            # safetensors reads the header, then torch maps the file by its name, which may be gone by then.
            if "unable to open file" not in str(error):
                raise
            raise OSError(str(error)) from error


class PickleFile:
    """A file written by torch.save, with tensors by name or, beside an optimizer, below `model`."""

    # Of a mapped file every page that was read counts as this process's memory until the mapping ends.
    _MAX_RESIDENT_BYTES = 2**28

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # Pickles from before torch 1.6 are no zip files, and cannot be mapped.
            self._is_mapped = refuse_archive_bomb(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise _unreadable(path, error) from error
        self._tensors: dict[str, Tensor] | None = self._load()
        self._resident_bytes = 0
        self.infos: dict[str, TensorInfo] = {}
        plain = {}
        for name, tensor in self._tensors.items():
            kind = describe_kind(tensor)
            shape = () if tensor.is_nested else tuple(tensor.shape)
            self.infos[name] = TensorInfo(shape, kind or _plain_dtype(tensor), path)
            if kind is not None:
                continue
            plain[name] = tensor
            held = tensor.untyped_storage().nbytes()
            if tensor.nbytes > held:
                raise CheckpointError(
                    f"{path}: {name} claims {tensor.nbytes} bytes ({list(tensor.shape)}) and the file holds {held}"
                )
        refuse_repeated_storage(path, plain)

    def read(self, name: str) -> Tensor:
        if self._resident_bytes > self._MAX_RESIDENT_BYTES:
            self.release()
        if self._tensors is None:
            self._tensors = self._load()
        tensor = self._tensors.get(name)
        info = self.infos[name]
        if tensor is None or tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            raise CheckpointError(f"{self._path} changed while it was read; {name} is not what it was")
        self._resident_bytes += tensor.nbytes
        # Neither a parameter with its gradient nor a view that stands for the negative of what is stored.
        return tensor.detach().resolve_neg()

    def release(self) -> None:
        if self._is_mapped:
            self._tensors, self._resident_bytes = None, 0

    def _load(self) -> dict[str, Tensor]:
        path = self._path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of torch about its own ways with odd tensors, which are refused
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=self._is_mapped)
        except PICKLE_ERRORS as error:
            raise _unreadable(path, error) from error
        if not isinstance(content, Mapping):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, where a mapping of tensors is expected"
            )
        # How torchtune wrote its own files, beside the optimizer's.
        if isinstance(content.get("model"), Mapping):
            content = content["model"]
        strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
        if strangers:
            raise CheckpointError(
                f"{path} holds more than tensors: {', '.join(name[:80] for name in strangers[:8])}. If the weights are "
                "nested in one of them, save that part alone."
            )
        return {str(name): tensor for name, tensor in content.items()}


class MetaShards:
    """Meta's consolidated.NN.pth: with several, each holds a slice of every matrix."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = [PickleFile(path) for path in paths]
        first = self._shards[0].infos
        for path, shard in zip(paths, self._shards):
            if different := set(first) ^ set(shard.infos):
                raise CheckpointError(
                    f"{path} and {paths[0]} do not belong together: only one of them holds "
                    f"{', '.join(sorted(different)[:8])}"
                )
        self.infos = {
            name: TensorInfo(
                merged_shape(name, [shard.infos[name].shape for shard in self._shards], self._width(first)),
                info.dtype,
                info.file,
            )
            for name, info in first.items()
        }

    def read(self, name: str) -> Tensor:
        width = self._width(self._shards[0].infos)
        return merged_tensor(name, [shard.read(name) for shard in self._shards], width)

    def release(self) -> None:
        for shard in self._shards:
            shard.release()

    @staticmethod
    def _width(infos: Mapping[str, TensorInfo]) -> int | None:
        return infos["norm.weight"].shape[0] if "norm.weight" in infos else None


def _read_header(path: Path) -> bytes:
    """Return the header of a safetensors file, whose length the file says before it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        num_bytes = os.fstat(file.fileno()).st_size
        if _MAX_HEADER_BYTES < length <= num_bytes:
            raise CheckpointError(
                f"{path}: the names and sizes of its tensors take {length} bytes; {_MAX_HEADER_BYTES} are read at most"
            )
        return file.read(min(length, num_bytes))


def _plain_dtype(tensor: Tensor) -> torch.dtype | str:
    return tensor.dtype if tensor.dtype in SAFETENSORS_DTYPES.values() else str(tensor.dtype)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
    except OSError as denied:  # safetensors calls a file missing that may not be read
        return CheckpointError(f"{path} cannot be read: {denied.strerror}")
    # torch's message begins with advice on how to run the pickle anyway; what it met stands behind this mark.
    found = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if "unsupported global" in found.lower() or "unsupported class" in found.lower():
        return CheckpointError(
            f"{path} holds Python objects beside weights, and loading those could run code; it is refused. "
            "Convert it to safetensors where you trust it."
        )
    lines = [line for line in found.splitlines() if line and not line.startswith("Weights only load failed")]
    reason = lines[0][:200] if lines else type(error).__name__
    return CheckpointError(
        f"{path} ({num_bytes} bytes) cannot be read as weights: {reason}. The file is cut short, corrupt "
        "or of another format; download or copy it again."
    )
