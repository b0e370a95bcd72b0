"""Tokenizing a source once: by many processes where it is long, into a cache where it can be told from others."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from tune.data import (
    ConversationTokenizer,
    DataReport,
    Row,
    TextTokenizer,
    TokenizedRows,
    TokenStore,
    TokenWriter,
)
from tune.data.cache import OFF, DataCache, open_cache
from tune.data.cache_key import NotDescribedError, cache_key
from tune.data.tokenize_preferences import JudgedTokenizer, PairTokenizer
from tune.datasets.reading import RowReader, check_learnable
from tune.datasets.sampling import Sample, current_sample
from tune.errors import DataError
from tune.utils.cores import count_cores
from tune.utils.logging import get_logger
from tune.utils.worker_pool import WorkerPool, pickled_job

RowTokenizer = ConversationTokenizer | TextTokenizer | PairTokenizer | JudgedTokenizer
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
        ConfigError: the bound of the cache is no number.
        DataError: there are faulty rows that shall not be dropped, or there is nothing to learn.
    """
    sample = current_sample()
    if sample is not None:
        sample.read.append((rows, job))

    def fill(writer: TokenWriter) -> DataReport:
        lists = rows if sample is None else _clipped(rows, job, sample)
        for tokenized in tokenize_rows(lists, job, count_tokenizing_processes() if sample is None else 1):
            writer.extend(tokenized.examples)
            if not rows.take(tokenized):
                break
        rows.finish()
        check_learnable(rows.report)
        return rows.report

    cache = None if sample is not None else open_cache(_preparation.get().data_cache_dir)
    content = None if cache is None else _digest(cache, rows)
    key = None if content is None else _key(rows, content, job)
    if cache is None or key is None:
        writer = TokenWriter(job.tokenizer.vocab_size)
        report = fill(writer)
        return writer.finish(), report

    def fill_from_unchanged(writer: TokenWriter) -> DataReport:
        report = fill(writer)
        if _digest(cache, rows) != content:
            raise DataError(f"{report.source} changed while it was read; let it be written, then run again")
        return report

    store, report = cache.load(key, rows.report.source, job.tokenizer.vocab_size, fill_from_unchanged)
    # What lies beside the files that are read decides nothing about the tokens.
    return store, replace(report, files_left_out=rows.report.files_left_out)


def _digest(cache: DataCache, rows: RowReader) -> str | None:
    """Return the checksum of what the rows are read from, None where these are no files, or not there any more."""
    with suppress(OSError):
        return None if rows.files is None else cache.digest(rows.files)
    return None


def _key(rows: RowReader, content: str, job: RowTokenizer) -> str | None:
    """Return what decides about the tokens, None where that is code which cannot be told from other code."""
    report = rows.report
    with suppress(NotDescribedError):
        return cache_key(
            source=rows.source,
            files=list(rows.files or ()),
            content=content,
            on_bad_rows=rows.on_bad_rows,
            format=report.format,
            template=report.template,
            job=job,
        )
    return None


def tokenize_rows(lists: Iterable[list[Row]], job: RowTokenizer, num_proc: int) -> Iterator[TokenizedRows]:
    """Yield what comes of lists of rows, in order; the same whatever `num_proc` is."""
    lists = iter(lists)
    spent = 0.0
    for rows in lists:
        started = time.monotonic()
        tokenized = job(rows)
        spent += time.monotonic() - started  # the caller's time between is none of ours
        yield tokenized
        if num_proc > 1 and spent > ALONE_S:
            break
    else:
        return
    if not (pickled := pickled_job(job)):
        yield from map(job, lists)
        return
    get_logger().info(f"Tokenizing in {num_proc} processes")
    try:
        results = WorkerPool[Row, TokenizedRows](pickled, num_proc).map(lists, job.stopped)
        atexit.register(_close, weakref.ref(results))  # while what it needs for that is still there
        yield from results
    except OSError as error:
        raise DataError(
            f"the data cannot be tokenized in {num_proc} processes ({error.strerror or error}): set dataset_num_proc "
            "to fewer, or to 1"
        ) from error


def _close(held: weakref.ref[Any]) -> None:
    if (results := held()) is not None:
        results.close()


def _clipped(lists: Iterable[list[Row]], job: RowTokenizer, sample: Sample) -> Iterator[list[Row]]:
    for rows in lists:
        if isinstance(job, TextTokenizer):
            for row in rows:
                if isinstance(text := row.values.get(job.column), str):
                    row.values[job.column] = sample.clip(text)
        yield rows


def count_tokenizing_processes(shares_host: bool = False) -> int:
    """Return how many processes tokenize: as many as there are cores for this one, if it is not said.

    Args:
        shares_host: the other processes of the run on this host tokenize, too, at the same time.
    """
    preparation = _preparation.get()
    if preparation.num_proc is not None:
        return preparation.num_proc
    shares_host = shares_host or preparation.data_cache_dir == OFF
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1) if shares_host else 1
    return max(count_cores() // max(sharing, 1), 1)
