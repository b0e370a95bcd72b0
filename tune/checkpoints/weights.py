"""A checkpoint's weights: which files they stand in, what they hold, and one tensor at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from tune.checkpoints.config_fields import read_json
from tune.checkpoints.file_formats import MetaShards, PickleFile, SafetensorsFile, TensorInfo, WeightFile
from tune.checkpoints.fp8 import SCALE, dequantize, find_fp8, say_once
from tune.checkpoints.manifest import check_saved_folder
from tune.checkpoints.mxfp4 import BLOCKS, SCALES, dequantize_mxfp4, find_mxfp4
from tune.errors import CheckpointError
from tune.utils.paths import expand_path

_EXPECTED = (
    "*.safetensors (with or without an index), pytorch_model*.bin, consolidated.*.pth or torchtune_model*.pt"
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_MAX_FILES = 10_000
_MAX_NAME = 255  # characters: the longest name that a file may have
_TORCHTUNE_FILE = r"torchtune_model(_\w+)?\.pt"


class WeightSource:
    """The tensors of a checkpoint: their names, shapes and dtypes at once, their values one at a time.

    Weights in fp8 or MXFP4 with scales beside them are bf16 here (`tune.checkpoints.fp8`, `mxfp4`).

    Args:
        path: what a person named, for messages.
        files: the opened files.
    """

    def __init__(self, path: Path, files: Sequence[WeightFile]) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        self._file_of: dict[str, WeightFile] = {}
        self._last: WeightFile | None = None
        for file in files:
            for name, info in file.infos.items():
                if name in self.infos:
                    raise CheckpointError(f"{name} stands in both {self.infos[name].file} and {info.file}")
                self.infos[name] = info
                self._file_of[name] = file
            file.release()
        self._fp8, of_fp8 = find_fp8(self.infos)
        self._mxfp4, of_mxfp4 = find_mxfp4(self.infos)
        for kind, found in (("fp8", self._fp8), ("MXFP4", self._mxfp4)):
            if found:
                say_once(str(path), kind)
        serving = of_fp8 | of_mxfp4
        self.infos = {name: info for name, info in self.infos.items() if name not in serving}
        self.infos |= self._fp8 | self._mxfp4

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

    def file_name(self, name: str) -> str | None:
        """Return the name of the file that a tensor stands in, those that only serve to read another among them."""
        file = self._file_of.get(name)
        return None if file is None else file.infos[name].file.name

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU. It may be a view of the file: copy it before you keep it."""
        if name in self._fp8:
            return dequantize(self._read(name), self._read(f"{name}{SCALE}"))
        if name in self._mxfp4:
            return dequantize_mxfp4(self._read(f"{name}{BLOCKS}"), self._read(f"{name}{SCALES}"))
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        file = self._file_of[name]
        if self._last is not None and self._last is not file:
            self._last.release()
        self._last = file
        return file.read(name)


def open_weights(location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> WeightSource:
    """Return the tensors of a checkpoint, without reading their values.

    Args:
        location: a directory with safetensors (one file, numbered parts, or parts with an index),
            pytorch_model*.bin (likewise), consolidated.*.pth or torchtune's torchtune_model*.pt; or one such file;
            or a list of files that together are a checkpoint.

    Raises:
        CheckpointError: there are no weights, parts are missing, a file is cut short or not of its format, or is no
            longer what was saved with the step it lies in.
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
        check_saved_folder(paths[0].parent)
        return WeightSource(paths[0].parent, _open_files(paths))
    path = expand_path(location)
    check_saved_folder(path.parent if path.is_file() else path)
    if path.is_file():
        return WeightSource(path, _open_files([path]))
    if not path.is_dir():
        raise CheckpointError(f"there is no directory or file {path}")
    # The last are Mistral's own downloads: with others beside them they are the same weights a second time.
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"), ("consolidated", "safetensors")):
        single, index = path / f"{stem}.{suffix}", path / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return WeightSource(path, _open_files([single]))
        if index.is_file():
            return _open_indexed(path, index)
        if parts := _numbered_parts(path, rf"{stem}-(\d+)-of-(\d+)\.{suffix}"):
            return WeightSource(path, _open_files(parts))
    if shards := sorted(path.glob("consolidated.*.pth")):
        return WeightSource(path, _open_files(shards))
    native = sorted(file for file in path.glob("*.pt") if re.fullmatch(_TORCHTUNE_FILE, file.name))
    if len(native) > 1:
        raise CheckpointError(
            f"{path} holds {len(native)} models ({', '.join(file.name for file in native[:8])}), one for each epoch: "
            "name the one that is meant"
        )
    if native:
        return WeightSource(path, _open_files(native))
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
    if len(names) > _MAX_FILES:
        raise CheckpointError(f"{index} names {len(names)} files of weights; {_MAX_FILES} are read at most")
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside its directory: {_shown(outside)}")
    if nameless := [name for name in names if name in ("", "..") or "\0" in name or len(name) > _MAX_NAME]:
        raise CheckpointError(f"{index} names files that no file can be called: {_shown(nameless)}")
    paths = [directory / name for name in names]
    _require(paths, index)
    source = WeightSource(directory, _open_files(paths))
    if lost := [name for name, file in places.items() if source.file_name(name) != file]:
        raise CheckpointError(f"{index} and its files disagree; not where the index says: {_shown(lost)}")
    return source


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


def _open_files(paths: Sequence[Path]) -> list[WeightFile]:
    shards = [path for path in paths if re.fullmatch(r"consolidated\.\d+\.pth", path.name)]
    files: list[WeightFile] = []
    if shards:
        numbers = [int(path.name.split(".")[1]) for path in shards]
        if numbers != list(range(len(shards))):
            raise CheckpointError(
                f"{shards[0].parent} holds the consolidated parts {numbers}, where they must count from 0 "
                "without a gap"
            )
        files.append(MetaShards(shards))
    for path in paths:
        if path.suffix == ".safetensors":
            files.append(SafetensorsFile(path))
        elif path not in shards and path.suffix in _SUFFIXES:
            files.append(PickleFile(path))
        elif path not in shards:
            raise CheckpointError(f"{path} is no weight file: expected {_EXPECTED}")
    return files


def _require(paths: Sequence[Path], named_by: Path) -> None:
    if missing := [path.name for path in paths if not path.is_file()]:
        folder = paths[0].parent
        found = sorted(path.name for path in folder.glob("*") if path.suffix in _SUFFIXES)
        raise CheckpointError(
            f"{named_by}: {len(missing)} of {len(paths)} weight files are missing: {_shown(missing)}. Of weight files "
            f"{folder} holds {_shown(found) or 'none'}: the download or copy is incomplete, or the names are others."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name[:_MAX_NAME] for name in names[:6]) + (
        f" and {len(names) - 6} more" if len(names) > 6 else ""
    )
