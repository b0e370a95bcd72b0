"""One record of a dataset, and a data file as bytes and text."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune.errors import DataError

UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One record: `place` names file and line, `problem` says why there are no `values`."""

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def open_file(file: Path) -> io.BufferedIOBase:
    """Return a file opened for reading bytes, unpacked if its name ends in .gz."""
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")


def check_head(file: Path, head: bytes) -> None:
    """Raise DataError where a file's first bytes show that it is no UTF-8 text, or not the data at all."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{file} is encoded as UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {file.name} > utf8_{file.name}"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{file} is a git-lfs pointer, not the data; fetch it with `git lfs pull`")


def decode(raw: bytes) -> str:
    """Return text. Raises ValueError that says which byte is no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # A column counts characters, as an editor does.
        column = len(raw[: error.start].decode("utf-8", errors="replace")) + 1
        byte = raw[error.start]
        raise ValueError(
            f"byte 0x{byte:02x} at column {column} is not UTF-8 (in Latin-1 it would be "
            f"{chr(byte)!a}); convert the file with iconv -f LATIN1 -t UTF-8"
        ) from error
