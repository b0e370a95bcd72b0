"""Plain text: every token is learnt. For pretraining, and for continued pretraining on one's documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import Dataset

from tune.data import DataReport, Source, TextTokenizer, find_text_column
from tune.data.tokenize_rows import OnTooLong
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader, sequence_limit
from tune.datasets.tokenizing import tokenize_source
from tune.datasets.written_tokens import parses_documents
from tune.utils.escape import escape_control

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


class TextCompletionDataset(Dataset[dict[str, list[int]]]):
    """Documents, each between BOS and EOS, in chunks of at most the limit.

    A chunk starts with the last token of the one before, so that each token of a document but the first is
    learnt exactly once. Items are as those of `SFTDataset`, with all tokens as labels.

    Args:
        tokenizer: gives the ids, and the limit where `max_seq_len` does not.
        source: the rows, see `SFTDataset`.
        column: holds the text; `text`, or the only column, is recognised.
        max_seq_len: tokens of a chunk; the smaller of this and the tokenizer's counts.
        add_eos: end each document with an EOS.
        on_bad_rows: what to do with rows that hold no text, see `SFTDataset`.
        on_too_long: what to do with a document longer than the limit: "split" it into chunks; "cut" it, "drop" it or
            stop with an "error".
        parse_special_tokens: as `SFTDataset`.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, has bad rows, or holds nothing to learn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        source: str | Source | RowReader | Iterable[Mapping[str, Any]],
        column: str | None = None,
        max_seq_len: int | None = None,
        add_eos: bool = True,
        on_bad_rows: Literal["error", "drop"] = "error",
        on_too_long: OnTooLong = "split",
        parse_special_tokens: bool | None = False,
    ) -> None:
        rows = source if isinstance(source, RowReader) else RowReader(source, on_bad_rows)
        column = find_text_column(rows.columns, column, rows.report.source)
        shown = escape_control(column, 60)
        rows.report.format = f"{shown}, plain text"
        rows.report.max_seq_len = limit = sequence_limit(tokenizer, max_seq_len, on_too_long)
        parse = parses_documents(tokenizer, rows, column, parse_special_tokens)
        self._store, self._report = tokenize_source(
            rows, TextTokenizer(tokenizer, column, shown, add_eos, limit, on_too_long, parse)
        )

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        return self._store.example(index)

    def length(self, index: int) -> int:
        """Return the number of tokens of a chunk without making it."""
        return self._store.length(index)

    def report(self) -> DataReport:
        """Return what was read."""
        return self._report

    def render_prompt(self, text: str) -> str:
        """Return `text` itself: a model of plain text continues what it is given."""
        return text


def text_completion_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    column: str | None = None,
    text_unit: Literal["document", "paragraph", "line"] = "document",
    add_eos: bool = True,
    parse_special_tokens: bool | None = None,
    packed: bool = False,
    max_seq_len: int | None = None,
    split: str = "train",
    data_files: str | list[str] | dict[str, str | list[str]] | None = None,
    name: str | None = None,
    revision: str | None = None,
    field: str | None = None,
    limit: int | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
    on_too_long: Literal["cut", "drop", "error", "split"] = "split",
) -> TextCompletionDataset | PackedDataset:
    """Return plain text for pretraining: every token is learnt.

    Documents longer than `max_seq_len` come in several chunks; nothing is cut off unless `on_too_long` says so.

    Args:
        tokenizer: gives the ids.
        source: hub name, local txt, json, jsonl, csv or parquet file, folder, or "text" with `data_files`.
        column: holds the text; `text`, or the only column, is recognised.
        text_unit: what is a document in a .txt file: all of it, each paragraph (between blank lines), or each line.
        add_eos: end each document with an EOS.
        parse_special_tokens: special tokens written out in the data are meant as such, no second end is added; False
            keeps them text. By default data that is in a chat format already is an error.
        packed: put several documents into one sequence of `max_seq_len` tokens, none seeing another.
        max_seq_len: tokens of a chunk; by default the tokenizer's limit.
        split: part of the source, with an optional range: train, train[:500], train[90%:].
        data_files: files or patterns, also by split.
        name: configuration of a hub dataset.
        revision: branch, tag or commit of a hub dataset.
        field: key of a JSON file that holds its rows.
        limit: rows to read at most.
        on_bad_rows: stop at rows that hold no text, or leave them out.
        on_too_long: split documents longer than `max_seq_len` into chunks, cut them, drop them, or stop with an error.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    place = Source(source, split, data_files, name, revision, field, limit, text_unit)
    dataset = TextCompletionDataset(
        tokenizer,
        source=RowReader(place, on_bad_rows),
        column=column,
        max_seq_len=max_seq_len,
        add_eos=add_eos,
        parse_special_tokens=parse_special_tokens,
        on_too_long=on_too_long,
    )
    return PackedDataset(dataset) if packed else dataset
