"""What a checkpoint holds beside the decoder that is read from it, carried over into what is saved.

Vision towers, projectors, layers for several predicted tokens: they are copied from file to file, a few megabytes at a
time. Their files are held open from the moment they are read, so that a folder that is moved or deleted while a model
trains takes nothing away; one that is written over is noticed.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from tune.checkpoints.config_fields import read_json
from tune.checkpoints.file_formats import TensorInfo
from tune.checkpoints.side_files import PROCESSOR_FILES
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import DecoderConfig, Family, Layout, OuterModel
from tune.utils import get_logger

__all__ = ["Carried", "CarriedTensor", "carried_tensors", "find_carried"]

_PIECE_BYTES = 2**22
_MAX_FILE_BYTES = 2**24  # of a processor's file, which is kept in memory


@dataclass(frozen=True)
class CarriedTensor:
    """A tensor that is copied byte for byte.

    Args:
        name, shape: as in the file.
        dtype: the format's own name where it is no plain floating-point type.
        nbytes: of its values.
        source: where they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    nbytes: int
    source: _Span | _Pickled

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the values, in order.

        Raises:
            CheckpointError: the file cannot be read, or is no longer what it was.
        """
        yield from self.source.pieces()

    def digest(self) -> bytes:
        """Return a checksum of the values, read anew."""
        checksum = hashlib.sha256()
        for piece in self.pieces():
            checksum.update(piece)
        return checksum.digest()


class Carried:
    """What a checkpoint holds beside the decoder.

    A copy of a model shares it: it is never changed.

    Args:
        layout: of the checkpoint.
        config: content of its config.json.
        tensors: to copy.
        files: of its processor, by name.
    """

    def __init__(
        self,
        layout: Layout,
        config: Mapping[str, Any],
        tensors: tuple[CarriedTensor, ...],
        files: Mapping[str, bytes],
    ) -> None:
        self.layout, self.tensors, self.files = layout, tensors, files
        self._config = config

    def __deepcopy__(self, memo: object) -> Carried:
        return self

    @property
    def outer(self) -> OuterModel | None:
        """The larger model that the checkpoint is; None: the decoder, with more tensors than it has."""
        return self.layout.outer

    def describe(self, family: Family, config: DecoderConfig, dtype: str) -> dict[str, Any]:
        """Return the content of config.json: as it was, but for what has changed of the decoder.

        Args:
            family: the decoder's.
            config: its sizes, as they are now.
            dtype: name of its weights' type.
        """
        content = copy.deepcopy(dict(self._config))
        content.pop("quantization_config", None)  # what was in fp8 is so no longer
        text = content if self.outer is None else content[self.outer.text_config]
        text.pop("quantization_config", None)
        before, after = (family.write_hf_config(sizes) for sizes in (family.read_hf_config(content), config))
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        text.update(changed)
        if "tie_word_embeddings" in changed:
            content["tie_word_embeddings"] = changed["tie_word_embeddings"]
        for part in (content, text):
            part.update({name: dtype for name in ("torch_dtype", "dtype") if name in part})
        if not {"torch_dtype", "dtype"} & content.keys():
            content["torch_dtype"] = dtype
        return content

    def with_token_ids(self, content: dict[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of config.json with ids of a tokenizer, wherever it speaks of them."""
        text = content if self.outer is None else content[self.outer.text_config]
        for name, value in ids.items():
            places = [part for part in (content, text) if name in part] or [content]
            for part in places:
                part[name] = value
        return content

    def write_files(self, folder: Path) -> None:
        """Write the files of the processor that `folder` does not hold."""
        for name, content in self.files.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(content)


def find_carried(source: WeightSource, layout: Layout, sizes: DecoderConfig) -> Carried | None:
    """Return what a checkpoint holds beside the decoder; None where it is the decoder alone.

    Args:
        source: of the weights.
        layout: they are in.
        sizes: of the decoder.

    Raises:
        CheckpointError: it cannot be carried over, which shows before training.
    """
    names = _names(source, layout, sizes)
    if layout.outer is None and not names:
        return None
    folder = source.path if source.path.is_dir() else source.path.parent
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if layout.outer is not None and layout.outer.text_config not in config:
        # A decoder's own configuration beside the larger model's weights: transformers reads it as a decoder, too.
        get_logger().warning(
            f"{path} describes a text model, and the weights beside it are those of a {layout.outer.architecture}: it "
            f"is saved as a text model, without the {len(names)} other tensors. With the larger model's config.json "
            "they would be carried over."
        )
        return None
    return Carried(
        layout, config, tuple(carried_tensors(source, layout, sizes).values()), _processor_files(folder)
    )


def carried_tensors(source: WeightSource, layout: Layout, sizes: DecoderConfig) -> dict[str, CarriedTensor]:
    """Return the tensors of a checkpoint that are no part of the decoder, by name.

    Raises:
        CheckpointError: as `find_carried`.
    """
    held: dict[Path, _HeldFile] = {}
    return {name: _carry(name, source.infos[name], source, held) for name in _names(source, layout, sizes)}


def _names(source: WeightSource, layout: Layout, sizes: DecoderConfig) -> list[str]:
    patterns = layout.all_carried(sizes)
    return [name for name in source if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _carry(name: str, info: TensorInfo, source: WeightSource, held: dict[Path, _HeldFile]) -> CarriedTensor:
    if info.file not in held:
        held[info.file] = _HeldFile(info.file)
    file = held[info.file]
    if info.span is not None:
        start, end = info.span
        return CarriedTensor(name, info.shape, info.dtype, end - start, _Span(file, start, end))
    if isinstance(info.dtype, str):
        raise CheckpointError(
            f"{info.file}: {name} is no part of the decoder and is carried over, which of a pickled file only plain "
            f"floating-point tensors are, and this is {info.dtype}: convert the file to safetensors"
        )
    nbytes = math.prod(info.shape) * info.dtype.itemsize
    return CarriedTensor(name, info.shape, info.dtype, nbytes, _Pickled(name, source, file))


def _processor_files(folder: Path) -> dict[str, bytes]:
    files = {}
    try:
        for path in sorted(folder.iterdir()):
            if not any(fnmatchcase(path.name, pattern) for pattern in PROCESSOR_FILES) or not path.is_file():
                continue
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise CheckpointError(
                    f"{path} has {path.stat().st_size} bytes, which no processor's settings have"
                )
            files[path.name] = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return files


class _HeldFile:
    """A file that stays readable whatever becomes of its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._look()

    def read(self, start: int, num_bytes: int) -> bytes:
        try:
            content = os.pread(self.descriptor, num_bytes, start)
        except OSError as error:
            raise self._gone(str(error.strerror)) from error
        if not content:
            raise self._gone("it is shorter than it was")
        return content

    def require_unchanged(self) -> None:
        if self._look() != self._state:
            raise self._gone("it has been written to since")

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns

    def _gone(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} holds tensors that are carried over from where the weights were read, and {reason}: what is "
            "saved would be another model. Put the file back as it was, and go on from the last saved step."
        )


@dataclass(frozen=True)
class _Span:
    """Bytes of a file."""

    file: _HeldFile
    start: int
    end: int

    def pieces(self) -> Iterator[bytes]:
        place = self.start
        while place < self.end:
            piece = self.file.read(place, min(_PIECE_BYTES, self.end - place))
            place += len(piece)
            yield piece
        self.file.require_unchanged()


@dataclass(frozen=True)
class _Pickled:
    """A tensor of a file that torch reads."""

    name: str
    source: WeightSource
    file: _HeldFile

    def pieces(self) -> Iterator[memoryview]:
        tensor = self.source.read(self.name).contiguous()
        self.file.require_unchanged()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
