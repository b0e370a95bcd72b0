"""What a file of torch.save would cost, judged before it is read: a small one may ask for gigabytes.

torch.save stores every tensor's bytes once and as they are. Whatever else an archive holds (compressed entries, ones
that lie in one another, numbers of bytes made from nothing) was not written by it.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tune.errors import CheckpointError

MAX_TENSORS = 200_000
_MAX_PICKLE_BYTES = 2**26  # some 300 for each tensor
# A tied matrix may stand twice, and small tensors may be views of a larger one.
_MAX_REPEATS = 2
_SPARE_BYTES = 2**20
# It makes as many bytes as a number says; no tensor is written with it.
_FROM_NOTHING = b"bytearray\n"


def refuse_archive_bomb(path: Path) -> bool:
    """Return whether a file is a zip archive, as torch.save writes them since 1.6, once its directory makes sense.

    Raises:
        CheckpointError: its entries are compressed, overlap, or say that they hold more than the file.
        zipfile.BadZipFile, OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size
    if not zipfile.is_zipfile(path):
        if num_bytes:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _refuse_numbers(path, content.find(_FROM_NOTHING) >= 0)
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if packed := [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
            total = sum(entry.file_size for entry in entries)
            raise CheckpointError(
                f"{path} ({num_bytes} bytes) is a compressed archive that says it unpacks to {total} bytes "
                f"({len(packed)} of {len(entries)} entries, {packed[0].filename[:80]} for one). torch.save compresses "
                "nothing, and no weights are read from what is: save them anew, as safetensors at best"
            )
        end, holder = 0, ""
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < end:
                raise CheckpointError(
                    f"{path}: its entries {holder[:80]} and {entry.filename[:80]} lie in one another (one ends at byte "
                    f"{end}, the other begins at {entry.header_offset}): no archive of torch.save, and it is refused"
                )
            end, holder = entry.header_offset + 30 + entry.file_size, entry.filename
        if end > num_bytes:
            raise CheckpointError(
                f"{path} has {num_bytes} bytes, and its entries say that they reach to byte {end}: the file is cut "
                "short or damaged; download or copy it again"
            )
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise CheckpointError(
                        f"{path}: the names and sizes of its tensors take {entry.file_size} bytes; "
                        f"{_MAX_PICKLE_BYTES} are read at most"
                    )
                _refuse_numbers(path, _FROM_NOTHING in archive.read(entry))
    return True


def refuse_repeated_storage(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where tensors claim many times the bytes that the file holds, by sharing them.

    Args:
        path: of the file.
        tensors: of plain kinds alone.
    """
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(tensors)} tensors; {MAX_TENSORS} are read at most")
    claimed, num_bytes = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > _MAX_REPEATS * num_bytes + _SPARE_BYTES:
        raise CheckpointError(
            f"the {len(tensors)} tensors in {path} claim {claimed} bytes together, and the file has {num_bytes}: they "
            "share their numbers. Save them anew, each with its own (`tensor.clone()`), or as safetensors"
        )


def describe_kind(tensor: Tensor) -> str | None:
    """Return what kind of tensor this is, in words, where it is no plain one with its own numbers."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"{type(tensor).__name__}, a subclass of torch.Tensor"
    if tensor.is_nested:
        return f"a nested tensor of {tensor.dtype}"
    if tensor.is_meta:
        return f"{tensor.dtype} on the meta device, without values"
    if tensor.is_quantized:
        return f"quantised {tensor.dtype}"
    if tensor.layout is not torch.strided:
        return f"{tensor.dtype} in the layout {tensor.layout}"
    return None


def _refuse_numbers(path: Path, found: bool) -> None:
    if found:
        raise CheckpointError(
            f"{path} holds a bytearray beside weights, which may take any amount of memory; it is refused. Save the "
            "weights alone, as safetensors at best"
        )
