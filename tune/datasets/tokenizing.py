"""Tokenizing a source once: by many processes where it is long, into a cache where it can be told from others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace

from tune.data import (
    ConversationTokenizer,
    DataReport,
    Row,
    TextTokenizer,
    TokenizedRows,
    TokenStore,
    TokenWriter,
)
from tune.data.cache import OFF, open_cache
from tune.data.cache_key import NotDescribedError, cache_key
from tune.datasets.reading import RowReader, check_learnable
from tune.datasets.sampling import Sample, current_sample
from tune.utils.logging import get_logger
from tune.utils.worker_pool import WorkerPool, num_cores, pickled_job

RowTokenizer = ConversationTokenizer | TextTokenizer
# Other processes need about as long before they begin.
ALONE_S = 1.0


@dataclass(frozen=True)
class Preparation:
    """How data is made ready; it decides nothing about the tokens.

    Args:
        num_proc: processes that tokenize; None for one per core.
        data_cache_dir: where tokens are kept: null or "" for the default place, "off" for nowhere.
    """

    num_proc: int | None = None
    data_cache_dir: str | None = None


_preparation: ContextVar[Preparation] = ContextVar("preparation", default=Preparation())  # noqa: B039 - it is frozen


@contextmanager
def preparing(num_proc: int | None = None, data_cache_dir: str | None = None) -> Iterator[None]:
    """Within, data sets are made ready in this way; arguments as of `Preparation`."""
    before = _preparation.set(Preparation(num_proc, data_cache_dir))
    try:
        yield
    finally:
        _preparation.reset(before)


def tokenize_source(rows: RowReader, job: RowTokenizer) -> tuple[TokenStore, DataReport]:
    """Return the examples of all rows and the report; from the cache where they have been made before.

    While a sample is taken, the cache is left alone.

    Raises:
        DataError: there are faulty rows that shall not be dropped, or there is nothing to learn.
    """
    sample = current_sample()

    def fill(writer: TokenWriter) -> DataReport:
        lists = rows if sample is None else _clipped(rows, job, sample)
        for tokenized in tokenize_rows(lists, job, _num_proc() if sample is None else 1):
            writer.extend(tokenized.examples)
            if not rows.take(tokenized):
                break
        rows.finish()
        check_learnable(rows.report)
        return rows.report

    cache = open_cache(_preparation.get().data_cache_dir)
    if cache is not None and sample is None and rows.source is not None and rows.files is not None:
        with suppress(NotDescribedError, OSError):
            key = cache_key(
                source=rows.source,
                files=list(rows.files),
                content=cache.digest(rows.files),
                on_bad_rows=rows.on_bad_rows,
                format=rows.report.format,
                template=rows.report.template,
                job=job,
            )
            store, report = cache.load(key, rows.report.source, job.tokenizer.vocab_size, fill)
            # What lies beside the files that are read decides nothing about the tokens.
            return store, replace(report, files_left_out=rows.report.files_left_out)
    writer = TokenWriter(job.tokenizer.vocab_size)
    report = fill(writer)
    return writer.finish(), report


def tokenize_rows(lists: Iterable[list[Row]], job: RowTokenizer, num_proc: int) -> Iterator[TokenizedRows]:
    """Yield what comes of lists of rows, in order; the same whatever `num_proc` is."""
    lists = iter(lists)
    started = time.monotonic()
    pickled = pickled_job(job) if num_proc > 1 else b""
    for rows in lists:
        yield job(rows)
        if pickled and time.monotonic() - started > ALONE_S:
            break
    else:
        return
    get_logger().info(f"Tokenizing in {num_proc} processes")
    yield from WorkerPool[Row, TokenizedRows](pickled, num_proc).map(lists, job.stopped)


def _clipped(lists: Iterable[list[Row]], job: RowTokenizer, sample: Sample) -> Iterator[list[Row]]:
    for rows in lists:
        if isinstance(job, TextTokenizer):
            for row in rows:
                if isinstance(text := row.values.get(job.column), str):
                    row.values[job.column] = sample.clip(text)
        yield rows


def _num_proc() -> int:
    """Return how many processes tokenize: as many as there are cores for this one, if it is not said."""
    preparation = _preparation.get()
    if preparation.num_proc is not None:
        return preparation.num_proc
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1) if preparation.data_cache_dir == OFF else 1
    return max(num_cores() // max(sharing, 1), 1)
