"""Where a dataset's rows come from: local files, a folder, or the Hugging Face hub."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tune.data.files import Row
from tune.data.folders import (
    DataFiles,
    data_files_of,
    expand_data_files,
    files_of_split,
    has_urls,
    is_saved,
)
from tune.data.hub import read_addresses, read_hub, read_saved_to_disk
from tune.data.rows import TextUnit, file_kind
from tune.data.shards import FileRows, RangeShard, Rows, Shard
from tune.errors import ConfigError, DataError
from tune.utils.escape import escape_control
from tune.utils.paths import expand_path
from tune.utils.splits import parse_split

# What Hugging Face calls its builders for local files.
_FILE_KINDS = ("json", "jsonl", "csv", "parquet", "text")
_ENDLESS = sys.maxsize
# Names that a misspelt one is compared with, for comparing takes long.
_MAX_COMPARED = 5000


_streamed: ContextVar[bool] = ContextVar("streamed", default=False)


@contextmanager
def streaming() -> Iterator[None]:
    """In here sources are read without being downloaded or counted."""
    token = _streamed.set(True)
    try:
        yield
    finally:
        _streamed.reset(token)


def is_streamed() -> bool:
    """Tell whether this is within `streaming`."""
    return _streamed.get()


@dataclass(frozen=True)
class Source:
    """A place of rows, not opened yet.

    Args:
        source: name on the hub, a file, a folder of files, or "json", "csv", "parquet", "text" with `data_files`.
        split: which part, with an optional range: "train", "train[:500]", "train[90%:]".
        data_files: files or patterns, also by split.
        name: configuration of a hub dataset.
        revision: branch, tag or commit of a hub dataset.
        field: key of a JSON file that holds its rows.
        limit: rows to read at most.
        text_unit: what is one row of a .txt file.
    """

    source: str
    split: str = "train"
    data_files: DataFiles | None = None
    name: str | None = None
    revision: str | None = None
    field: str | None = None
    limit: int | None = None
    text_unit: TextUnit = "document"

    def __str__(self) -> str:
        """Return the source as reports name it."""
        parts = [escape_control(self.source, 1000)]
        if self.data_files is not None:
            parts.append(escape_control(self.data_files, 200))
        if self.split != "train":
            parts.append(self.split)
        if self.limit is not None:
            parts.append(f"first {self.limit:,} rows")
        return " ".join(parts)

    @property
    def is_remote(self) -> bool:
        """Whether the rows have to be fetched, from the hub or from addresses of the web."""
        if self.source in _FILE_KINDS:
            return self.data_files is not None and has_urls(self.data_files)
        place = expand_path(self.source)
        is_local = place.exists() or place.is_symlink() or "://" in self.source
        return not is_local and not _looks_like_a_path(self.source)

    def rows(self) -> SourceRows:
        """Return an iterator over the rows, which knows the files that hold them.

        Raises:
            ConfigError: the arguments contradict each other.
            DataError: there is no such place, or it cannot be read.
        """
        if not self.source:
            raise ConfigError("dataset.source is empty: give a local file, a folder, or a name on the hub")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"dataset.limit is {self.limit}, expected at least 1")
        rows, start, stop = self._open(is_streamed())
        range_of_rows = RangeShard(rows, *self._bounds(rows, start, stop))
        return SourceRows((make() for make in range_of_rows.unmade()), rows.files)

    def shards(self) -> list[Shard]:
        """Return the rows in parts that are read by themselves, one for each file; of a range there is one alone.

        Nothing is counted or downloaded before.

        Raises:
            ConfigError, DataError: as `rows`.
        """
        rows, start, stop = self._open(streamed=True)
        first, last = self._bounds(rows, start, stop)
        return [RangeShard(rows, first, last)] if first or last is not None else rows.shards()

    def local_files(self) -> list[Path]:
        """Return the files that hold the rows; [] where they are not in local files."""
        rows, _, _ = self._open(streamed=True)
        return list(rows.files or ())

    def _open(self, streamed: bool) -> tuple[Rows, str | None, str | None]:
        """Return the rows of the whole split, and the range of it that is meant."""
        split, start, stop = parse_split(self.split)
        if streamed and _needs_count(start, stop):
            raise ConfigError(
                f"dataset.split is {self.split}, and how many rows that is would be known once all are counted, which "
                "streamed data never is: take rows by their number, such as train[1000:]"
            )
        try:
            return self._all_rows(split, streamed), start, stop
        except OSError as error:
            name = escape_control(error.filename or self.source)
            raise DataError(f"cannot read {name}: {error.strerror or error}") from error

    def _bounds(self, rows: Rows, start: str | None, stop: str | None) -> tuple[int, int | None]:
        """Return the first row that is asked for, and the one after the last; None for the end."""
        first, last = 0, None
        if _needs_count(start, stop):
            first, last = _resolve_range(start, stop, len(rows))  # two passes rather than all rows in memory
        elif start is not None or stop is not None:
            first, last = int(start or 0), int(stop) if stop else None
        if self.limit is not None:
            last = min(first + self.limit, _ENDLESS if last is None else last)
        return first, last

    def files(self) -> tuple[list[str], list[str]]:
        """Return the names of the files of a folder that are read, and of the data files there that are not.

        Both are empty for any other source. Raises DataError where nothing in the folder is read.
        """
        folder = expand_path(self.source)
        if self.data_files is not None or not folder.is_dir() or is_saved(folder):
            return [], []
        read = files_of_split(folder, parse_split(self.split)[0])
        left_out = [file for file in data_files_of(folder) if file not in set(read)]
        names = [
            [escape_control(file.relative_to(folder), 200) for file in files] for files in (read, left_out)
        ]
        return names[0], names[1]

    def _all_rows(self, split: str, streamed: bool) -> Rows:
        if self.data_files is not None and self.source in _FILE_KINDS:
            if not has_urls(self.data_files):
                return self._read_files(
                    expand_data_files(self.data_files, split, Path()), f"data_files of {split}"
                )
            options: dict[str, Any] = {"field": self.field} if self.source in ("json", "jsonl") else {}
            if self.source == "text":
                options["sample_by"] = self.text_unit
            return read_addresses(self.source, split, self.data_files, streamed, **options)
        place = expand_path(self.source)
        if self.source in _FILE_KINDS and not place.exists():
            raise ConfigError(
                f"dataset.source={self.source} says what kind of files there are, but not which: set "
                "dataset.data_files, or give the file itself as the source"
            )
        if place.is_dir():
            return self._read_folder(place, split)
        if place.is_file():
            _check_single_file(place, split)
            return self._read_files([place], self.source)
        if place.exists() or place.is_symlink():
            raise DataError(_no_file(place))
        if "://" in self.source:
            raise ConfigError(
                f"dataset.source is the address {self.source}: give a file of the web as "
                f"dataset.source=json (or csv, parquet) with dataset.data_files={self.source}"
            )
        if _looks_like_a_path(self.source):
            raise DataError(_no_file(place, "file or folder"))
        self._refuse_field("a dataset of the hub")
        return read_hub(self.source, split, self.name, self.revision, self.data_files, streamed)

    def _refuse_field(self, what: str) -> None:
        if self.field is not None:
            raise ConfigError(
                f"dataset.field is {self.field!r}, which is for JSON files; the source is {what}"
            )

    def _read_folder(self, folder: Path, split: str) -> Rows:
        if is_saved(folder):
            self._refuse_field("a dataset that `datasets` has saved")
            return read_saved_to_disk(folder, split)
        if self.data_files is not None:
            files = expand_data_files(self.data_files, split, folder)
        else:
            files = files_of_split(folder, split)
        return self._read_files(files, str(folder))

    def _read_files(self, files: Sequence[Path], what: str) -> FileRows:
        if not files:
            raise DataError(f"{escape_control(what)} names no files")
        for file in files:
            if not file.is_file():
                raise DataError(_no_file(file))
        return FileRows(files, self.field, self.text_unit)


class SourceRows(Iterator[Row]):
    """The rows of a source.

    Attributes:
        files: whose content decides about them, in order; None where it is not in files alone.
    """

    def __init__(self, rows: Iterator[Row], files: Sequence[Path] | None) -> None:
        self.files = files
        self._rows = rows

    def __next__(self) -> Row:
        return next(self._rows)


def _needs_count(*bounds: str | None) -> bool:
    return any(bound and (bound.startswith("-") or bound.endswith("%")) for bound in bounds)


def _resolve_range(start: str | None, stop: str | None, total: int) -> tuple[int, int]:
    """Return the first row of a range, and the one after its last."""

    def place(bound: str | None) -> int | None:
        if not bound:
            return None
        # Rounded as Hugging Face does, so that [:90%] and [90%:] share nothing and leave nothing out.
        return round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)

    first, last, _ = slice(place(start), place(stop)).indices(total)
    return first, max(first, last)


def _check_single_file(file: Path, split: str) -> None:
    if split != "train":
        raise ConfigError(
            f"dataset.split is {split!r}, but the single file {escape_control(file)} is all 'train'; give the file "
            f"that holds the {split} rows as the source, or take a range of this one: split=train[90%:]"
        )


def _looks_like_a_path(source: str) -> bool:
    return (
        source.startswith((".", "/", "~", "bundled:"))
        or source.count("/") > 1
        or "\\" in source
        or file_kind(Path(source)) is not None
        # No dataset of the hub that lacks an owner has a dot in its name.
        or ("/" not in source and "." in source)
    )


def _no_file(path: Path, wanted: str = "file") -> str:
    """Return what is at a path that leads to no file."""
    name = escape_control(path)
    if path.is_symlink() and not path.exists():
        return f"{name} is a link to {escape_control(path.readlink())}, which leads nowhere"
    if path.exists():
        return f"{name} is neither a file nor a folder" if not path.is_dir() else f"{name} is a folder"
    if not path.parent.is_dir():
        return f"there is no {wanted} {name} (nor a folder {escape_control(path.parent)})"
    entries = [entry.name for entry in islice(path.parent.iterdir(), _MAX_COMPARED)]
    near = difflib.get_close_matches(path.name, entries, n=1)
    hint = f"; did you mean {escape_control(path.parent / near[0])}?" if near else ""
    return f"there is no {wanted} {name}{hint}"
