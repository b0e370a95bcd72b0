"""Instructions in the prompts of Stanford Alpaca."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from tune.data import (
    AlpacaInstructTemplate,
    AlpacaToMessages,
    LearntAnswers,
    Source,
    find_instruction_columns,
)
from tune.data.tokenize_rows import OnTooLong
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.tokenizers.family_format import family_template_of, place_inside
from tune.tokenizers.templates import AnyTemplate, PlainTemplate

if TYPE_CHECKING:
    from tune.data import InstructionColumns
    from tune.data.train_on import TrainOn
    from tune.tokenizers import Tokenizer


def alpaca_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "tatsu-lab/alpaca",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = True,
    ignore_columns: list[str] | None = None,
    train_on: Literal["all", "last"] = "all",
    train_on_reasoning: bool = True,
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
    on_too_long: Literal["cut", "drop", "error", "split"] = "cut",
) -> SFTDataset | PackedDataset:
    """Return instructions with their answers, written as Stanford Alpaca writes them.

    Columns are recognised by name: instruction/input/output, and those of `instruct_dataset`.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.
        column_map: `instruction`, `input` and `output`, each to its column, where names are not recognised; `system`
            to that of a system prompt, `history` to that of earlier pairs of prompt and answer.
        train_on_input: learn the prompt too; False learns answers and their EOS alone.
        ignore_columns: columns that are not read, and not reported as unused.
        train_on: "all" answers, or the "last" alone, where a row holds earlier ones.
        train_on_reasoning: False reads what is thought before an answer, in <think> tags, and does not learn it.
        parse_special_tokens: special tokens written out in the data are meant as such, no second end is added; False
            keeps them text. By default data that is in a chat format already is an error.
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
    columns = find_instruction_columns(rows.columns, column_map, source=rows.report.source)
    choice = (train_on_input, train_on, train_on_reasoning)
    return alpaca_from_rows(
        tokenizer,
        rows,
        columns,
        *choice,
        packed=packed,
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
        ignore_columns=ignore_columns or (),
        turns=family_template_of(tokenizer),
        parse_special_tokens=parse_special_tokens,
    )


def alpaca_cleaned_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "yahma/alpaca-cleaned",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = True,
    ignore_columns: list[str] | None = None,
    train_on: Literal["all", "last"] = "all",
    train_on_reasoning: bool = True,
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
    on_too_long: Literal["cut", "drop", "error", "split"] = "cut",
) -> SFTDataset | PackedDataset:
    """Return the cleaned Alpaca instructions; arguments as in `alpaca_dataset`."""
    return alpaca_dataset(
        tokenizer,
        source=source,
        column_map=column_map,
        train_on_input=train_on_input,
        ignore_columns=ignore_columns,
        train_on=train_on,
        train_on_reasoning=train_on_reasoning,
        parse_special_tokens=parse_special_tokens,
        packed=packed,
        max_seq_len=max_seq_len,
        split=split,
        data_files=data_files,
        name=name,
        revision=revision,
        field=field,
        limit=limit,
        on_bad_rows=on_bad_rows,
        on_too_long=on_too_long,
    )


def alpaca_from_rows(
    tokenizer: Tokenizer,
    rows: RowReader,
    columns: InstructionColumns,
    train_on_input: bool,
    train_on: TrainOn = "all",
    train_on_reasoning: bool = True,
    *,
    packed: bool,
    max_seq_len: int | None,
    ignore_columns: Sequence[str],
    on_too_long: OnTooLong,
    parse_special_tokens: bool | None,
    turns: AnyTemplate | None = None,
) -> SFTDataset | PackedDataset:
    """Return rows whose columns are known as a dataset of Alpaca prompts, in turns where a template writes them."""
    if isinstance(turns, AlpacaInstructTemplate):
        turns = None  # the prompts are written in it as it is
    rows.report.format = str(columns)
    transform = AlpacaToMessages(train_on_input, columns.column_map("instruction", "input"), ignore_columns)
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=LearntAnswers(transform, train_on, train_on_reasoning),
        prompt_template=turns or "plain",
        inference_template=place_inside(AlpacaInstructTemplate(), turns or PlainTemplate()),
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
        parse_special_tokens=parse_special_tokens,
    )
    return PackedDataset(dataset) if packed else dataset
