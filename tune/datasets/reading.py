"""Reading a source row by row: what is wrong with rows, and what cutting costs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from tune.data import DataReport, Row, Source, TokenStore
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


class RowReader:
    """Iterates over (place, values) of a source, and gathers what is wrong with rows.

    Args:
        source: the rows.
        on_bad_rows: "error" raises at the end, listing them; "drop" counts them.

    Attributes:
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
        self._drop = on_bad_rows == "drop"
        rows = source.rows() if isinstance(source, Source) else _number(source)
        if isinstance(source, Source):
            self.report.files, self.report.files_left_out = source.files()
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

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        sample = current_sample()
        for row in self._rows:
            if sample is not None and sample.is_complete(self.report.num_examples, self.report.num_rows):
                return
            if sample is not None and not sample.takes(row.place, row.values):
                continue
            self.report.num_rows += 1
            if self.report.num_rows % _NUM_BETWEEN_NEWS == 0:
                _log.info(f"read {self.report.num_rows:,} rows of {self.report.source}")
            if row.problem:
                self.reject(row.place, row.problem)
            else:
                yield row.place, row.values
            if not self._drop and self.report.num_dropped >= _NUM_COLLECTED:
                return

    def peeked(self) -> Iterator[dict[str, Any]]:
        """Return the first rows, which are read again when iterating."""
        return (row.values for row in self._peeked if not row.problem)

    def reject(self, place: str, reason: str) -> None:
        """Record that a row cannot be used."""
        self.report.note_dropped(place, reason)

    def finish(self) -> None:
        """Raise DataError that lists the rejected rows, unless they shall be dropped."""
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


def add_example(
    store: TokenStore, report: DataReport, tokens: list[int], weights: list[float], limit: int | None
) -> None:
    """Store an example, cut to `limit` tokens, and counts it; one with nothing left to learn is left out."""
    if len(weights) > 1 and not any(weights[1:]):
        report.num_unlearnt += 1
        return
    report.longest = max(report.longest, len(tokens))
    num_cut = 0 if limit is None else max(len(tokens) - limit, 0)
    if num_cut:
        report.num_truncated += 1
        report.num_tokens_cut += num_cut
        tokens, weights = tokens[:limit], weights[:limit]
    # The first token is the target of no position.
    targets = weights[1:]
    num_targets = len(targets) - targets.count(0.0)
    if num_targets < 1:
        report.num_lost += 1
        return
    store.append(tokens, weights)
    if (sample := current_sample()) is not None:
        sample.note_example(num_cut)
    report.num_examples += 1
    report.num_tokens += len(tokens)
    report.num_target_tokens += num_targets
    report.num_weighted_tokens += num_targets - targets.count(1.0)


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
    if report.num_unlearnt and not report.num_dropped:
        raise DataError(
            f"nothing to learn in {report.source}: in all {report.num_unlearnt:,} rows no answer is to be learnt: "
            "weight 0, by flags of the messages (weight, train, loss, masked), or by dataset.train_on"
        )
    listed = "".join(f"\n  {line}" for line in report.dropped)
    raise DataError(
        f"nothing to learn in {report.source}: of {report.num_rows:,} rows {report.num_dropped:,} were left out{listed}"
    )


def sequence_limit(tokenizer: Tokenizer, max_seq_len: int | None) -> int | None:
    """Return the smaller of the limits given by a dataset and by its tokenizer."""
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
        weight += _weight(row.values)
    return peeked


def _weight(values: Any) -> int:
    """Return about how many bytes of memory a row's values take."""
    weight, held = 0, [values]
    while held:
        value = held.pop()
        weight += 64
        if isinstance(value, Mapping):
            held += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            held += value
        elif isinstance(value, str | bytes):
            weight += len(value)
    return weight


def _number(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(f"row {number}", dict(values)) for number, values in enumerate(rows, start=1))
