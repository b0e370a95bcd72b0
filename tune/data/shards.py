"""Rows in parts that can each be read by itself, from any row on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from tune.data.files import Row
from tune.data.rows import TextUnit, read_unmade

UnmadeRows = Iterator[Callable[[], Row]]


class Shard(Protocol):
    """A part of a source that is read by itself.

    Attributes:
        files: that hold it; None where it is not in files.
    """

    @property
    def files(self) -> Sequence[Path] | None: ...

    def unmade(self, start: int = 0) -> UnmadeRows:
        """Yield what makes each row, from the `start`-th on: a row that is only passed over need not be made."""
        ...


class Rows(Shard, Protocol):
    """All rows of a source, read anew whenever they are asked for."""

    def __len__(self) -> int: ...

    def shards(self) -> list[Shard]: ...


@dataclass(frozen=True)
class FileShard:
    """One file of rows."""

    path: Path
    json_field: str | None
    text_unit: TextUnit

    @property
    def files(self) -> Sequence[Path]:
        """The file."""
        return [self.path]

    def unmade(self, start: int = 0) -> UnmadeRows:
        """Yield what makes each row, from the `start`-th on."""
        return read_unmade(self.path, self.json_field, self.text_unit, start)


class FileRows:
    """The rows of files, one file after another."""

    def __init__(self, files: Sequence[Path], json_field: str | None, text_unit: TextUnit) -> None:
        self.files: Sequence[Path] | None = files
        self._shards = [FileShard(file, json_field, text_unit) for file in files]

    def __len__(self) -> int:
        return sum(1 for _ in self.unmade())

    def shards(self) -> list[Shard]:
        """Return the files."""
        return [*self._shards]

    def unmade(self, start: int = 0) -> UnmadeRows:
        """Yield what makes each row, from the `start`-th on."""
        return islice((make for shard in self._shards for make in shard.unmade()), start, None)


@dataclass(frozen=True)
class RangeShard:
    """A range of rows, from the `first` on, up to and without the `last`; None for all."""

    rows: Shard
    first: int
    last: int | None

    @property
    def files(self) -> Sequence[Path] | None:
        """The files that hold the rows, and others."""
        return self.rows.files

    def unmade(self, start: int = 0) -> UnmadeRows:
        """Yield what makes each row, from the `start`-th of the range on."""
        if self.last is None:
            return self.rows.unmade(self.first + start)
        return islice(self.rows.unmade(self.first + start), max(self.last - self.first - start, 0))
