"""One record of a dataset, and a data file as bytes and text, no more of it in memory than one record takes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tune.errors import DataError
from tune.utils.escape import escape_control

UTF8_BOM = b"\xef\xbb\xbf"
MIB = 1 << 20
# A row beyond this (some four million tokens) is no example. JSON of many small values takes 25 times as much.
MAX_ROW_BYTES = 16 * MIB
# A text file that is one document is read whole.
MAX_DOCUMENT_BYTES = 256 * MIB
_LOOKED_AT = 1 << 16  # bytes at either end of a file that is not read whole
_MARKED_BLANK = (UTF8_BOM, UTF8_BOM + b"\r")
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One record: `place` names file and line, `problem` says why there are no `values`."""

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    def itself(self) -> Row:
        """Return this row: what makes it, where it is made already."""
        return self


@dataclass(frozen=True)
class DataFile:
    """A file of rows; `str()` is its name as messages show it."""

    path: Path

    def __str__(self) -> str:
        return self.name

    @cached_property
    def name(self) -> str:
        """Return the path, fit for a terminal."""
        return escape_control(self.path)

    def size(self) -> int:
        """Return the bytes it has on the disk. Raises DataError where it is no file that has an end."""
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{self} is {_kind_of(status.st_mode)}, not a file of data")
        return status.st_size

    def open(self) -> io.BufferedReader | gzip.GzipFile:
        """Return it opened for reading bytes, unpacked if its name ends in .gz, past the mark of UTF-8.

        Raises:
            DataError: the first bytes show that it is no UTF-8 text, or not the data at all.
        """
        packed = self.path.name.lower().endswith(".gz")
        stream = gzip.open(self.path, "rb") if packed else self.path.open("rb")  # noqa: SIM115 - the caller closes it
        try:
            check_head(self, stream.peek(200)[:200])
            if stream.peek(3).startswith(UTF8_BOM):
                stream.read(3)
        except BaseException:
            stream.close()
            raise
        return stream

    def open_text(self, newline: str = "") -> io.TextIOWrapper:
        """Return it opened for reading text, with lines that end as in old and new systems, or in `newline` alone.

        See `check_decoded`.
        """
        return io.TextIOWrapper(self.open(), encoding="utf-8", errors="surrogateescape", newline=newline)

    def lines(self, num_passed: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of every line. Raises DataError at one too long for a row.

        Args:
            num_passed: lines at the start that may be left out, as long as none of them is blank.
        """
        with self.open() as stream:
            number = 0 if isinstance(stream, gzip.GzipFile) else _pass_lines(stream, num_passed)
            while raw := stream.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(raw) > MAX_ROW_BYTES:
                    raise self.row_too_long(f"{self}:{number}: this line")
                yield number, raw

    def row_too_long(self, what: str) -> DataError:
        """Return the error for a row that goes on beyond what one may have."""
        return DataError(
            f"{what} goes on for more than {MAX_ROW_BYTES:,} bytes, the most that one row may have (the file has "
            f"{self.size():,} bytes on the disk). Split long texts into several rows, and have each row end its line"
        )


def _pass_lines(stream: io.BufferedReader, most: int) -> int:
    """Read past lines, far quicker than one by one, and before the first that is blank; return their number."""
    number, at = 0, stream.tell()
    while chunk := stream.read(MIB):
        *lines, rest = chunk.split(b"\n")
        has_blank = not all(map(bytes.strip, lines)) or any(mark in lines for mark in _MARKED_BLANK)
        if not lines or number + len(lines) > most or has_blank:
            break
        number, at = number + len(lines), at + len(chunk) - len(rest)
        stream.seek(at)
    stream.seek(at)
    return number


def describe_files(files: Sequence[Path]) -> str:
    """Return a short text that changes when files are others, told by their names, sizes and 64 KiB at either end."""
    digest = hashlib.sha256()
    num_bytes = 0
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}|".encode())
            for start in (0, max(size - _LOOKED_AT, 0)):
                file.seek(start)
                digest.update(file.read(_LOOKED_AT))
        num_bytes += size
    return f"{len(files)} files, {num_bytes} bytes, {digest.hexdigest()[:16]}"


def check_head(file: DataFile, head: bytes) -> None:
    """Raise DataError where a file's first bytes show that it is no UTF-8 text, or not the data at all."""
    encoding = _other_encoding(head)
    if encoding:
        name = escape_control(file.path.name)
        raise DataError(
            f"{file} is encoded as {encoding}; convert it: iconv -f {encoding} -t UTF-8 {name} > utf8_{name}"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{file} is a git-lfs pointer, not the data; fetch it with `git lfs pull`")


def _other_encoding(head: bytes) -> str:
    """Return the encoding that the first bytes show, "" for none but UTF-8."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    # Without a mark: data begins with a character of ASCII, and no text has NULs around it.
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}.get(zeros, "")


def decode(raw: bytes) -> str:
    """Return text. Raises ValueError that says which byte is no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # A column counts characters, as an editor does.
        column = len(raw[: error.start].decode("utf-8", errors="replace")) + 1
        raise ValueError(_not_utf8(raw[error.start], column)) from error


def check_decoded(file: DataFile, text: str, line: int = 1, column: int = 1) -> None:
    """Raise DataError where a text of `open_text`, which begins at `line` and `column`, is not all UTF-8."""
    if text.isascii() or (found := _UNDECODED.search(text)) is None:
        return
    at = found.start()
    newlines = text.count("\n", 0, at)
    column = at - text.rfind("\n", 0, at) if newlines else column + at
    raise DataError(f"{file}:{line + newlines}: {_not_utf8(ord(text[at]) - 0xDC00, column)}")


def _not_utf8(byte: int, column: int) -> str:
    return (
        f"byte 0x{byte:02x} at column {column} is not UTF-8 (in Latin-1 it would be "
        f"{chr(byte)!a}); convert the file with iconv -f LATIN1 -t UTF-8"
    )


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def check_size(file: DataFile, size: int) -> None:
    """Raise DataError where a file has not the size it had when reading began."""
    now = file.size()
    if now != size:
        raise DataError(
            f"{file} changed while it was read, from {size:,} to {now:,} bytes; let it be written, then run again"
        )
