"""Plain text: every token is learnt. For pretraining, and for continued pretraining on one's documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from torch.utils.data import Dataset

from tune.data import DataReport, Source, TextTokenizer, find_text_column
from tune.data.tokenize_rows import OnTooLong
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader, sequence_limit
from tune.datasets.row_settings import PackedSettings, WrittenTokenSettings, read_rows
from tune.datasets.tokenizing import tokenize_source
from tune.datasets.written_tokens import parses_documents
from tune.utils.escape import escape_control
from tune.utils.settings import Setting, takes_settings

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


class TextSettings(PackedSettings, WrittenTokenSettings, total=False):
    """Those of plain text."""

    add_eos: Annotated[bool, Setting(True, "end each document with an EOS.")]
    on_too_long: Annotated[
        Literal["cut", "drop", "error", "split"],
        Setting(
            "split",
            "split documents longer than `max_seq_len` into chunks, cut them, drop them, or stop with an error.",
        ),
    ]


@takes_settings(TextSettings)
def text_completion_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    column: str | None = None,
    text_unit: Literal["document", "paragraph", "line"] = "document",
    **settings: Unpack[TextSettings],
) -> TextCompletionDataset | PackedDataset:
    """Return plain text for pretraining: every token is learnt.

    Documents longer than `max_seq_len` come in several chunks; nothing is cut off unless `on_too_long` says so.

    Args:
        tokenizer: gives the ids.
        source: hub name, local txt, json, jsonl, csv or parquet file, folder, or "text" with `data_files`.
        column: holds the text; `text`, or the only column, is recognised.
        text_unit: what is a document in a .txt file: all of it, each paragraph (between blank lines), or each line.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    dataset = TextCompletionDataset(
        tokenizer,
        source=read_rows(source, settings, text_unit=text_unit),
        column=column,
        max_seq_len=settings["max_seq_len"],
        add_eos=settings["add_eos"],
        parse_special_tokens=settings["parse_special_tokens"],
        on_too_long=settings["on_too_long"],
    )
    return PackedDataset(dataset) if settings["packed"] else dataset
