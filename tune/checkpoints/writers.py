"""Weight files written one tensor at a time, under their names only once they are whole."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from tune.checkpoints.carried import CarriedTensor
from tune.checkpoints.file_formats import SAFETENSORS_DTYPES
from tune.checkpoints.mapping import LayoutTensor
from tune.errors import CheckpointError

__all__ = ["plan_shards", "replacing", "write_json", "write_pickle", "write_safetensors", "write_shards"]

Advance = Callable[[int], None]
_CHUNK_BYTES = 2**22
_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class FileTensor(Protocol):
    """What is written of a tensor: what the header says of it, and its values once they are asked for."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def nbytes(self) -> int: ...
    def read(self) -> Tensor: ...


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write under; the file gets its own name once it is whole, and is removed if it is not."""
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # a link there would be followed
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # it has its own name by then, unless something went wrong


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a configuration or an index."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_shards(
    folder: Path,
    tensors: Sequence[FileTensor | CarriedTensor],
    max_bytes: int,
    advance: Advance | None = None,
) -> None:
    """Write model.safetensors, or numbered files of at most `max_bytes` with an index.

    Args:
        folder: exists.
        tensors: in the order in which they fill the files.
        max_bytes: of the tensors in one file; a larger tensor gets a file of its own.
        advance: told the number of bytes written, often.
    """
    plan = plan_shards(tensors, max_bytes)
    count = len(plan)
    if count == 1:
        write_safetensors(folder / "model.safetensors", plan[0], advance)
        return
    places = {}
    for number, shard in enumerate(plan, start=1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        places.update({tensor.name: file for tensor in shard})
        write_safetensors(folder / file, shard, advance)
    metadata = {"total_size": sum(tensor.nbytes for tensor in tensors)}
    write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": places})


def plan_shards(
    tensors: Sequence[FileTensor | CarriedTensor], max_bytes: int
) -> list[list[FileTensor | CarriedTensor]]:
    """Return the tensors of each file."""
    plan: list[list[FileTensor | CarriedTensor]] = [[]]
    used = 0
    for tensor in tensors:
        if plan[-1] and used + tensor.nbytes > max_bytes:
            plan.append([])
            used = 0
        plan[-1].append(tensor)
        used += tensor.nbytes
    return plan


def write_safetensors(
    path: Path,
    tensors: Sequence[FileTensor | CarriedTensor],
    advance: Advance | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file; the same tensors and metadata give the same bytes.

    A number of 8 bytes (the header's length, little-endian), the header as JSON, then the tensors' bytes without gaps.
    # https://github.com/huggingface/safetensors, README, "Format"
    """
    # Wider numbers first, so that every tensor starts at a multiple of its own number's size.
    ordered = sorted(tensors, key=lambda tensor: -_itemsize(tensor))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype if isinstance(tensor.dtype, str) else _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            if isinstance(tensor, CarriedTensor):
                _copy_values(file, tensor, advance)
            else:
                _write_values(file, tensor, advance)


def write_pickle(path: Path, tensors: Sequence[LayoutTensor], advance: Advance | None = None) -> None:
    """Write one file as torch.save does, so that torch.load(path, weights_only=True) gives the tensors by name.

    torch.save makes the zip archive around tensors without memory and leaves their room empty; the values and their
    checksums are then filled in. Tensors made of the same parameters share their room.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # as torch.serialization.skip_data documents

    rooms: dict[Any, tuple[LayoutTensor, Tensor]] = {}
    with FakeTensorMode():
        for tensor in tensors:
            if tensor.rules not in rooms:
                rooms[tensor.rules] = (tensor, torch.empty(tensor.shape, dtype=tensor.dtype))
    hollow = {tensor.name: rooms[tensor.rules][1] for tensor in tensors}
    with replacing(path) as partial:
        try:
            with torch.serialization.skip_data(materialize_fake_tensors=True):
                torch.save(hollow, partial)
        except RuntimeError as error:  # what torch makes of a full disk
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} cannot be written: is the disk full? ({reason})") from error
        with zipfile.ZipFile(partial) as archive:
            entries = archive.infolist()
            directory_start: int = archive.start_dir
        prefix = entries[0].filename.split("/")[0]
        by_name = {entry.filename: entry for entry in entries}
        with partial.open("r+b") as file:
            checksums = {}
            # torch.save numbers the storages in the order in which it meets them.
            for number, (tensor, _) in enumerate(rooms.values()):
                entry = by_name[f"{prefix}/data/{number}"]
                if entry.file_size != tensor.nbytes:
                    raise CheckpointError(
                        f"torch.save left {entry.file_size} bytes for {tensor.name}, which has {tensor.nbytes}"
                    )
                checksums[entry.filename] = _fill_room(file, entry, tensor, advance)
            _write_directory_checksums(file, directory_start, len(entries), checksums)


def _fill_room(file: BinaryIO, entry: zipfile.ZipInfo, tensor: LayoutTensor, advance: Advance | None) -> int:
    """Write a tensor's values into its record and the checksum behind them; return the checksum.

    # PKWARE APPNOTE 4.3.7 (local header), 4.3.9 (data descriptor)
    """
    file.seek(entry.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(entry.header_offset + 30 + name_length + extra_length)
    checksum = zlib.crc32(_write_values(file, tensor, advance))
    if file.read(4) != b"PK\x07\x08":
        raise CheckpointError(
            f"torch {torch.__version__} writes archives in another form than is known here ({entry.filename})"
        )
    file.seek(0, os.SEEK_CUR)  # between reading and writing
    file.write(struct.pack("<I", checksum))
    return checksum


def _write_directory_checksums(
    file: BinaryIO, start: int, count: int, checksums: Mapping[str, int]
) -> None:  # PKWARE APPNOTE 4.3.12
    place = start
    for _ in range(count):
        file.seek(place)
        fixed = file.read(46)
        name_length, extra_length, comment_length = struct.unpack("<HHH", fixed[28:34])
        name = file.read(name_length).decode()
        if name in checksums:
            file.seek(place + 16)
            file.write(struct.pack("<I", checksums[name]))
        place += 46 + name_length + extra_length + comment_length


def _itemsize(tensor: FileTensor | CarriedTensor) -> int:
    if not isinstance(tensor.dtype, str):
        return tensor.dtype.itemsize
    return tensor.nbytes // max(math.prod(tensor.shape), 1)


def _copy_values(file: BinaryIO, tensor: CarriedTensor, advance: Advance | None) -> None:
    for piece in tensor.pieces():
        file.write(piece)
        if advance is not None:
            advance(len(piece))


def _write_values(file: BinaryIO, tensor: FileTensor, advance: Advance | None) -> memoryview:
    """Write a tensor's bytes where the file stands, and return them."""
    values = tensor.read()
    if tuple(values.shape) != tensor.shape or values.dtype != tensor.dtype:
        raise CheckpointError(
            f"{tensor.name} became {list(values.shape)} {values.dtype} where {list(tensor.shape)} {tensor.dtype} is "
            "needed"
        )
    raw: memoryview = values.reshape(-1).view(torch.uint8).numpy().data
    # In pieces, so that progress is seen and Ctrl-C is heard.
    for start in range(0, len(raw), _CHUNK_BYTES):
        piece = raw[start : start + _CHUNK_BYTES]
        file.write(piece)
        if advance is not None:
            advance(len(piece))
    return raw
