"""Data that was tokenized before, or that is written without a template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune.data import Source, TokenizedToExamples, list_names
from tune.data.tokenized_rows import IDS_COLUMNS, SEGMENTS_COLUMN
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.errors import DataError

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


def tokenized_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    ignore_columns: list[str] | None = None,
    packed: bool = False,
    max_seq_len: int | None = None,
    split: str = "train",
    data_files: str | list[str] | dict[str, str | list[str]] | None = None,
    name: str | None = None,
    revision: str | None = None,
    field: str | None = None,
    limit: int | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
    on_too_long: Literal["cut", "drop", "error", "split"] = "cut",
) -> SFTDataset | PackedDataset:
    """Return tokens as the data has them (`input_ids`, `labels`), or `segments` of text that are learnt or not.

    No BOS, EOS or template is added. See `tune.data.TokenizedToExamples` for the columns.

    Args:
        tokenizer: has to be the one of the tokens; gives the ids of segments, special tokens in them included.
        source: hub name, local json, jsonl or parquet file, folder, or "json" with `data_files`.
        ignore_columns: columns that are not read, and not reported as unused.
        packed: put several examples into one sequence of `max_seq_len` tokens, none seeing another.
        max_seq_len: tokens to keep of an example; by default the tokenizer's limit.
        split: part of the source, with an optional range: train, train[:500], train[90%:].
        data_files: files or patterns, also by split.
        name: configuration of a hub dataset.
        revision: branch, tag or commit of a hub dataset.
        field: key of a JSON file that holds its rows.
        limit: rows to read at most.
        on_bad_rows: stop at rows that are malformed or hold nothing to learn, or leave them out.
        on_too_long: cut what is longer than `max_seq_len`, drop it, stop with an error, or split it into several.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    rows = RowReader(Source(source, split, data_files, name, revision, field, limit), on_bad_rows)
    found = [column for column in (*IDS_COLUMNS, SEGMENTS_COLUMN) if column in rows.columns]
    if not found:
        raise DataError(
            f"no column of {rows.report.source} holds tokens: found {list_names(rows.columns)}, expected input_ids "
            "(with labels), or segments (of text and label). Text is read by chat_dataset, instruct_dataset or "
            "text_completion_dataset (in a config: dataset=chat, instruct or text_completion)"
        )
    rows.report.format = f"{', '.join(found)}, as written"
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=TokenizedToExamples(tokenizer, ignore_columns or ()),
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
    )
    dataset.report().template = ""
    return PackedDataset(dataset) if packed else dataset
