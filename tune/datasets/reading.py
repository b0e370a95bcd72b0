"""Reading a source row by row: what is wrong with rows, and what cutting costs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from tune.data import DataReport, Row, Source, TokenizedRows
from tune.data.tokenize_rows import ON_TOO_LONG, OnTooLong
from tune.data.values import weigh
from tune.datasets.sampling import current_sample
from tune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

_log = logging.getLogger(__name__)
OnBadRows = Literal["error", "drop"]
# Rows looked at to learn which columns there are: optional ones may be missing from the first.
_NUM_PEEKED = 1000
_PEEKED_BYTES = 64 << 20
_NUM_BETWEEN_NEWS = 100_000
# Faulty rows after which reading stops: the file is of another kind.
_NUM_COLLECTED = 1000
_NUM_SHOWN = 5
# What one process is given at a time: enough that handing it over counts for nothing, and soon done.
_BATCH_ROWS = 64
_BATCH_BYTES = 128 << 10


class RowReader:
    """Iterates over the rows of a source, and gathers what is wrong with them.

    Args:
        source: the rows.
        on_bad_rows: "error" raises at the end, listing them; "drop" counts them.

    Attributes:
        source: where the rows come from; None where they were given.
        files: that hold them, where these alone decide about them.
        on_bad_rows: as given.
        columns: names of the columns in the first rows.
        report: counts rows and those left out.
    """

    def __init__(
        self,
        source: str | Source | Iterable[Mapping[str, Any]],
        on_bad_rows: OnBadRows = "error",
    ) -> None:
        if on_bad_rows not in ("error", "drop"):
            raise ConfigError(f"dataset.on_bad_rows is {on_bad_rows!r}, expected 'error' or 'drop'")
        source = Source(source) if isinstance(source, str) else source
        self.report = DataReport(source=str(source) if isinstance(source, Source) else "the rows given")
        self.source = source if isinstance(source, Source) else None
        self.on_bad_rows = on_bad_rows
        self._drop = on_bad_rows == "drop"
        self._too_long: list[tuple[str, int]] = []
        rows: Iterator[Row]
        if isinstance(source, Source):
            rows = source.rows()
            self.files = rows.files
            self.report.files, self.report.files_left_out = source.files()
        else:
            rows = _number(source)
            self.files = None
        self._peeked = peeked = _peek(rows)
        self.columns = list(dict.fromkeys(str(name) for row in peeked for name in row.values))
        self._rows: Iterator[Row] = chain(peeked, rows)
        if not peeked:
            raise DataError(f"{self.report.source} holds no rows")
        if not self.columns:
            # Nothing to recognise columns in: say what is wrong with the rows instead.
            for row in peeked:
                self.reject(row.place, row.problem or "has no columns")
            self._drop = False
            self.finish()

    def __iter__(self) -> Iterator[list[Row]]:
        """Yield the rows in lists, many short ones or few long ones; for a sample one by one, as far as it takes."""
        if (sample := current_sample()) is not None:
            for row in self._rows:
                if sample.is_complete(self.report.num_examples, self.report.num_rows):
                    return
                if sample.takes(row.place, row.values):
                    yield [row]
            return
        rows: list[Row] = []
        num_bytes = 0
        for row in self._rows:
            rows.append(row)
            num_bytes += weigh(row.values)
            if num_bytes >= _BATCH_BYTES or len(rows) >= _BATCH_ROWS:
                yield rows
                rows, num_bytes = [], 0
        if rows:
            yield rows

    def take(self, tokenized: TokenizedRows) -> bool:
        """Count what came of some rows; return whether to go on, which with too many faulty ones is for nothing."""
        before = self.report.num_rows // _NUM_BETWEEN_NEWS
        self.report.add(tokenized.report)
        if self.report.num_rows // _NUM_BETWEEN_NEWS > before:
            _log.info(f"read {self.report.num_rows:,} rows of {self.report.source}")
        if (sample := current_sample()) is not None:
            for num_cut in tokenized.num_cut:
                sample.note_example(num_cut)
        for place, reason in tokenized.rejected:
            self.reject(place, reason)
            if not self._drop and self.report.num_dropped >= _NUM_COLLECTED:
                return False
        self._too_long += tokenized.too_long
        return len(self._too_long) < _NUM_COLLECTED

    def peeked(self) -> Iterator[dict[str, Any]]:
        """Return the first rows, which are read again when iterating."""
        return (row.values for row in self._peeked if not row.problem)

    def reject(self, place: str, reason: str) -> None:
        """Record that a row cannot be used."""
        self.report.note_dropped(place, reason)

    def finish(self) -> None:
        """Raise DataError that lists the rejected rows, unless they shall be dropped, and the examples too long."""
        if self._too_long:
            raise DataError(self._describe_too_long())
        if self._drop or not self.report.num_dropped:
            return
        listed = "\n".join(f"  {line}" for line in self.report.dropped)
        more = self.report.num_dropped - len(self.report.dropped)
        at_least = "at least " if self.report.num_dropped >= _NUM_COLLECTED else ""
        rows = "row" if self.report.num_dropped == 1 else "rows"
        raise DataError(
            f"{at_least}{self.report.num_dropped:,} {rows} of {self.report.source} cannot be learnt from:\n{listed}"
            + (f"\n  and {more:,} more" if more else "")
            + "\nRepair them, or leave them out with dataset.on_bad_rows=drop"
        )

    def _describe_too_long(self) -> str:
        number, shown = len(self._too_long), self._too_long[:_NUM_SHOWN]
        at_least = "at least " if number >= _NUM_COLLECTED else ""
        listed = "".join(f"\n  {place}: {length:,} tokens" for place, length in shown)
        more = f"\n  and {number - len(shown):,} more" if number > len(shown) else ""
        return (
            f"{at_least}{number:,} examples of {self.report.source} are longer than max_seq_len="
            f"{self.report.max_seq_len}, and dataset.on_too_long is error:{listed}{more}\nRaise "
            "dataset.max_seq_len, or set dataset.on_too_long to cut, drop or split"
        )


def check_learnable(report: DataReport) -> None:
    """Raise DataError where no example is left."""
    if report.num_examples:
        return
    if report.num_lost:
        raise DataError(
            f"nothing to learn in {report.source}: in all {report.num_lost:,} examples the answer lies beyond "
            f"max_seq_len={report.max_seq_len} (the longest example has {report.longest:,} tokens). Raise "
            "dataset.max_seq_len, or use a tokenizer and model made for longer sequences"
        )
    if report.num_long_dropped and not report.num_dropped:
        raise DataError(
            f"nothing to learn in {report.source}: all {report.num_long_dropped:,} examples are longer than "
            f"max_seq_len={report.max_seq_len}, and dataset.on_too_long is drop. Raise dataset.max_seq_len, or set "
            "dataset.on_too_long to cut or split"
        )
    if report.num_unlearnt and not report.num_dropped:
        raise DataError(
            f"nothing to learn in {report.source}: in all {report.num_unlearnt:,} rows no answer is to be learnt: "
            "weight 0, by flags of the messages (weight, train, loss, masked), or by dataset.train_on"
        )
    listed = "".join(f"\n  {line}" for line in report.dropped)
    raise DataError(
        f"nothing to learn in {report.source}: of {report.num_rows:,} rows {report.num_dropped:,} were left out{listed}"
    )


def sequence_limit(tokenizer: Tokenizer, max_seq_len: int | None, on_too_long: OnTooLong) -> int | None:
    """Return the smaller of the limits given by a dataset and by its tokenizer.

    Raises:
        ConfigError: it leaves nothing to learn, or there is no such thing to do with what is longer.
    """
    if on_too_long not in ON_TOO_LONG:
        raise ConfigError(f"dataset.on_too_long is {on_too_long!r}, expected one of {', '.join(ON_TOO_LONG)}")
    if max_seq_len is not None and max_seq_len < 2:
        raise ConfigError(
            f"dataset.max_seq_len is {max_seq_len}, expected at least 2: one token to read, one to learn"
        )
    limits = [limit for limit in (max_seq_len, tokenizer.max_seq_len) if limit is not None]
    return min(limits) if limits else None


def _peek(rows: Iterator[Row]) -> list[Row]:
    """Return the first rows: fewer where they are large, for all of them are held."""
    peeked: list[Row] = []
    weight = 0
    while len(peeked) < _NUM_PEEKED and weight < _PEEKED_BYTES and (row := next(rows, None)) is not None:
        peeked.append(row)
        weight += weigh(row.values)
    return peeked


def _number(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(f"row {number}", dict(values)) for number, values in enumerate(rows, start=1))
