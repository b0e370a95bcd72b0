"""Weight files: what tensors they hold, and one tensor at a time.

Only safetensors and pickles restricted to weights are read, memory-mapped where the format allows it.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tune.checkpoints.config_fields import read_json
from tune.checkpoints.meta_shards import merged_shape, merged_tensor
from tune.errors import CheckpointError
from tune.utils.paths import expand_path

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_EXPECTED = "*.safetensors (with or without an index), pytorch_model*.bin or consolidated.*.pth"
# What torch.load is known to raise on files that are cut short, corrupt, or not weights.
_PICKLE_ERRORS = (
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


class _File(Protocol):
    infos: dict[str, TensorInfo]

    def read(self, name: str) -> Tensor: ...


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.infos: dict[str, TensorInfo] = {}
        try:
            handle = self._open()
            for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
                view = handle.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(view.get_dtype(), view.get_dtype())
                self.infos[name] = TensorInfo(tuple(view.get_shape()), dtype, path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error

    def read(self, name: str) -> Tensor:
        # Opened for each tensor: the file's pages count as this process's memory for as long as it is mapped.
        try:
            tensor: Tensor = self._open().get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self._path, error) from error
        return tensor

    def _open(self) -> Any:
        return safe_open(self._path, framework="pt", device="cpu")


class _PickleFile:
    def __init__(self, path: Path) -> None:
        try:
            # Pickles from before torch 1.6 are no zip files, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except _PICKLE_ERRORS as error:
            raise _unreadable(path, error) from error
        if not isinstance(content, Mapping):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, where a mapping of tensors is expected"
            )
        if isinstance(
            content.get("model"), Mapping
        ):  # how torchtune wrote its own files, beside the optimizer's
            content = content["model"]
        strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
        if strangers:
            raise CheckpointError(
                f"{path} holds more than tensors: {', '.join(strangers[:8])}. If the weights are nested in one of "
                "them, save that part alone."
            )
        self._tensors: dict[str, Tensor] = {str(name): tensor for name, tensor in content.items()}
        self.infos = {
            name: TensorInfo(tuple(tensor.shape), _plain_dtype(tensor), path)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class _MetaShards:
    """Meta's consolidated.NN.pth: with several, each holds a slice of every matrix."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = [_PickleFile(path) for path in paths]
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

    @staticmethod
    def _width(infos: Mapping[str, TensorInfo]) -> int | None:
        return infos["norm.weight"].shape[0] if "norm.weight" in infos else None


class WeightSource:
    """The tensors of a checkpoint: their names, shapes and dtypes at once, their values one at a time.

    Args:
        path: what a person named, for messages.
        files: the opened files.
    """

    def __init__(self, path: Path, files: Sequence[_File]) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        self._file_of: dict[str, _File] = {}
        for file in files:
            for name, info in file.infos.items():
                if name in self.infos:
                    raise CheckpointError(f"{name} stands in both {self.infos[name].file} and {info.file}")
                self.infos[name] = info
                self._file_of[name] = file

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: info.shape for name, info in self.infos.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU. It may be a view of the file: copy it before you keep it."""
        return self._file_of[name].read(name)


def open_weights(location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> WeightSource:
    """Return the tensors of a checkpoint, without reading their values.

    Args:
        location: a directory with safetensors (one file, numbered parts, or parts with an index),
            pytorch_model*.bin (likewise) or consolidated.*.pth; or one such file; or a list of files that
            together are a checkpoint.

    Raises:
        CheckpointError: there are no weights, parts are missing, or a file is cut short or not of its format.
    """
    try:
        return _open(location)
    except OSError as error:
        raise CheckpointError(f"{error.filename or location} cannot be read: {error.strerror}") from error


def _open(location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> WeightSource:
    if not isinstance(location, str | os.PathLike):
        paths = [expand_path(path) for path in location]
        if not paths:
            raise CheckpointError("the list of weight files is empty")
        _require(paths, paths[0].parent)
        return WeightSource(paths[0].parent, _open_files(paths))
    path = expand_path(location)
    if path.is_file():
        return WeightSource(path, _open_files([path]))
    if not path.is_dir():
        raise CheckpointError(f"there is no directory or file {path}")
    for index_name, single, part in (
        ("model.safetensors.index.json", "model.safetensors", r"model-(\d+)-of-(\d+)\.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", r"pytorch_model-(\d+)-of-(\d+)\.bin"),
    ):
        if (path / single).is_file():
            return WeightSource(path, _open_files([path / single]))
        if (path / index_name).is_file():
            return _open_indexed(path, path / index_name)
        if parts := _numbered_parts(path, part):
            return WeightSource(path, _open_files(parts))
    if shards := sorted(path.glob("consolidated.*.pth")):
        return WeightSource(path, _open_files(shards))
    raise CheckpointError(f"no weights were found in {path}: expected {_EXPECTED}")


def _open_indexed(directory: Path, index: Path) -> WeightSource:
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(file, str) for file in places.values())
    ):
        raise CheckpointError(f"{index} has no `weight_map` from tensor names to file names")
    names = sorted(set(places.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside its directory: {', '.join(outside[:8])}")
    paths = [directory / name for name in names]
    _require(paths, index)
    source = WeightSource(directory, _open_files(paths))
    if lost := [name for name, file in places.items() if _file_name(source, name) != file]:
        raise CheckpointError(
            f"{index} and its files disagree; not where the index says: {', '.join(lost[:8])}"
            + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        )
    return source


def _file_name(source: WeightSource, name: str) -> str | None:
    return source.infos[name].file.name if name in source else None


def _numbered_parts(directory: Path, pattern: str) -> list[Path]:
    found = {
        path: match for path in sorted(directory.iterdir()) if (match := re.fullmatch(pattern, path.name))
    }
    for path, match in found.items():
        if len(found) != int(match[2]):
            raise CheckpointError(
                f"{directory} holds {len(found)} of the {match[2]} parts that {path.name} speaks of: "
                "the download or copy is incomplete"
            )
    return list(found)


def _open_files(paths: Sequence[Path]) -> list[_File]:
    shards = [path for path in paths if re.fullmatch(r"consolidated\.\d+\.pth", path.name)]
    files: list[_File] = []
    if shards:
        numbers = [int(path.name.split(".")[1]) for path in shards]
        if numbers != list(range(len(shards))):
            raise CheckpointError(
                f"{shards[0].parent} holds the consolidated parts {numbers}, where they must count from 0 "
                "without a gap"
            )
        files.append(_MetaShards(shards))
    for path in paths:
        if path.suffix == ".safetensors":
            files.append(_SafetensorsFile(path))
        elif path not in shards and path.suffix in (".bin", ".pth", ".pt"):
            files.append(_PickleFile(path))
        elif path not in shards:
            raise CheckpointError(f"{path} is no weight file: expected {_EXPECTED}")
    return files


def _require(paths: Sequence[Path], named_by: Path) -> None:
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(
            f"{named_by}: {len(missing)} of {len(paths)} weight files are missing: {', '.join(missing)}. "
            "The download or copy is incomplete."
        )


def _plain_dtype(tensor: Tensor) -> torch.dtype | str:
    is_plain = tensor.layout is torch.strided and tensor.dtype in _SAFETENSORS_DTYPES.values()
    return tensor.dtype if is_plain else str(tensor.dtype)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    try:
        path.open("rb").close()
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
        f"{path} ({path.stat().st_size} bytes) cannot be read as weights: {reason}. The file is cut short, corrupt "
        "or of another format; download or copy it again."
    )
