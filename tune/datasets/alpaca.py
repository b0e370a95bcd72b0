"""Instructions in the prompts of Stanford Alpaca."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from tune.data import (
    AlpacaInstructTemplate,
    AlpacaToMessages,
    find_instruction_columns,
)
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.row_settings import AnswerSettings, answers_dataset, read_rows
from tune.datasets.sft import SFTDataset
from tune.tokenizers.family_format import family_template_of, place_inside
from tune.tokenizers.templates import AnyTemplate, PlainTemplate
from tune.utils.settings import takes_settings

if TYPE_CHECKING:
    from tune.data import InstructionColumns
    from tune.tokenizers import Tokenizer


@takes_settings(AnswerSettings)
def alpaca_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "tatsu-lab/alpaca",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = True,
    **settings: Unpack[AnswerSettings],
) -> SFTDataset | PackedDataset:
    """Return instructions with their answers, written as Stanford Alpaca writes them.

    Columns are recognised by name: instruction/input/output, and those of `instruct_dataset`.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.
        column_map: `instruction`, `input` and `output`, each to its column, where names are not recognised; `system`
            to that of a system prompt, `history` to that of earlier pairs of prompt and answer.
        train_on_input: learn the prompt too; False learns answers and their EOS alone.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    rows = read_rows(source, settings)
    columns = find_instruction_columns(rows.columns, column_map, source=rows.report.source)
    turns = family_template_of(tokenizer)
    return alpaca_from_rows(tokenizer, rows, columns, train_on_input, settings, turns)


@takes_settings(AnswerSettings)
def alpaca_cleaned_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "yahma/alpaca-cleaned",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = True,
    **settings: Unpack[AnswerSettings],
) -> SFTDataset | PackedDataset:
    """Return the cleaned Alpaca instructions; arguments as in `alpaca_dataset`."""
    return alpaca_dataset(
        tokenizer, source=source, column_map=column_map, train_on_input=train_on_input, **settings
    )


def alpaca_from_rows(
    tokenizer: Tokenizer,
    rows: RowReader,
    columns: InstructionColumns,
    train_on_input: bool,
    settings: AnswerSettings,
    turns: AnyTemplate | None = None,
) -> SFTDataset | PackedDataset:
    """Return rows whose columns are known as a dataset of Alpaca prompts, in turns where a template writes them."""
    if isinstance(turns, AlpacaInstructTemplate):
        turns = None  # the prompts are written in it as it is
    rows.report.format = str(columns)
    ignored = settings["ignore_columns"] or ()
    transform = AlpacaToMessages(train_on_input, columns.column_map("instruction", "input"), ignored)
    return answers_dataset(
        tokenizer,
        rows,
        transform,
        settings,
        prompt_template=turns or "plain",
        inference_template=place_inside(AlpacaInstructTemplate(), turns or PlainTemplate()),
    )
