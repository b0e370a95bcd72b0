"""A look at the first examples of a source: reading ends once there are enough, and where each came from is noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# Characters of a text that are tokenized for a look: one file may be one document.
_MAX_CHARS = 200_000
# Rows without an example after which a look ends: all of a file may be too long.
_MAX_ROWS_LEFT_OUT = 1000


@dataclass(frozen=True)
class SampledExample:
    """Where an example came from.

    Args:
        place: file and line of its row.
        num_cut: tokens of it beyond the limit, which are not learnt.
        values: of its row, by column, where the sample keeps them.
    """

    place: str
    num_cut: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Sample:
    """What is read of a source while `sampling`, and what was found.

    Args:
        max_examples: reading ends once there are so many; None reads all rows.
        row: name of the one row that is read: its place as messages name it (`train.jsonl:17`, or the end of that), or
            what its column `id` holds.
        gives_up: whether reading ends, too, after many rows that became no examples.
        keeps_values: whether what the row of each example holds is kept beside it.
        read: filled while reading: the reader of each source, and what makes tokens of its rows.
        examples: filled while reading, in the order of the dataset.
        is_partial: set where rows were left unread.
        is_found: set where the one row was there.
    """

    max_examples: int | None = None
    row: str | None = None
    gives_up: bool = True
    keeps_values: bool = False
    read: list[tuple[Any, Any]] = field(default_factory=list)
    examples: list[SampledExample] = field(default_factory=list)
    is_partial: bool = False
    is_found: bool = False
    _place: str = ""
    _values: Mapping[str, Any] = field(default_factory=dict)

    def is_complete(self, num_examples: int, num_rows: int) -> bool:
        """Tell whether reading ends before the row that comes now."""
        enough = self.is_found
        if self.max_examples is not None:
            given_up = self.gives_up and num_rows >= self.max_examples + _MAX_ROWS_LEFT_OUT
            enough = num_examples >= self.max_examples or given_up
        self.is_partial = self.is_partial or enough
        return enough

    def takes(self, place: str, values: Mapping[str, Any]) -> bool:
        """Tell whether a row is read, which then is the one that examples come from."""
        if self.row is not None and not (_is_called(self.row, place) or _has_id(self.row, values)):
            return False
        self.is_found = self.row is not None
        self._place = place
        if self.keeps_values:
            self._values = values
        return True

    def note_example(self, num_cut: int) -> None:
        """Record an example of the row at hand."""
        self.examples.append(SampledExample(self._place, num_cut, self._values))

    def clip(self, text: str) -> str:
        """Return as much of a text as a look at the first examples needs."""
        if self.max_examples is None or len(text) <= _MAX_CHARS:
            return text
        self.is_partial = True
        return text[:_MAX_CHARS]


_current: ContextVar[Sample | None] = ContextVar("sample", default=None)


def current_sample() -> Sample | None:
    """Return the sample that is taken, or None where datasets are read whole."""
    return _current.get()


@contextmanager
def sampling(sample: Sample) -> Iterator[Sample]:
    """In here datasets read no more than the sample takes, and keep nothing for later."""
    token = _current.set(sample)
    try:
        yield sample
    finally:
        _current.reset(token)


def _is_called(name: str, place: str) -> bool:
    """Tell whether a name is that of a place, or its end from the file's name, the line or a word on."""
    before = place[: -len(name)] if name and place.endswith(name) else None
    return before is not None and (not before or before[-1] in "/\\, :" or name[0] in ":,")


def _has_id(name: str, values: Mapping[str, Any]) -> bool:
    return any(
        str(value) == name
        for column, value in values.items()
        if (column == "id" or column.endswith("_id")) and isinstance(value, str | int)
    )
