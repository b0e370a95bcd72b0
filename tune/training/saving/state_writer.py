"""Writing torch.distributed.checkpoint files, with a reason where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.futures import Future

__all__ = ["make_writer"]


class _ExplainedWriter(FileSystemWriter):
    def write_data(self, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            # Of a full disk torch says `unexpected pos 704 vs 598`. The reason stands behind it, but does not travel
            # to other processes.
            behind: BaseException | None = error
            while behind is not None and not isinstance(behind, OSError):
                behind = behind.__cause__ or behind.__context__
            raise behind or error from None


def make_writer(directory: Path, *, flushed: bool) -> FileSystemWriter:
    """Return a writer for torch.distributed.checkpoint's `save`; `flushed`: what it has written is on the disk."""
    return _ExplainedWriter(directory, sync_files=flushed)
