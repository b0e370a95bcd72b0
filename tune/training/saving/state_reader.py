"""Reading torch.distributed.checkpoint files without letting them run code.

Its index file is a pickle, and a pickle can call anything. A saved step may come from a stranger, so the index is
read with a list of the few classes an index of tensors is made of. (The tensors are read weights-only by torch.)
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta

__all__ = ["make_safe_reader"]

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


def make_safe_reader(directory: Path) -> FileSystemReader:
    """Return a reader for torch.distributed.checkpoint's `load` that refuses an index naming anything but tensors."""
    return _SafeReader(directory)
