"""Data that was tokenized before, or that is written without a template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from tune.data import TokenizedToExamples, list_names
from tune.data.tokenized_rows import IDS_COLUMNS, SEGMENTS_COLUMN
from tune.datasets.packed import PackedDataset
from tune.datasets.row_settings import RowSettings, read_rows
from tune.datasets.sft import SFTDataset
from tune.errors import DataError
from tune.utils.settings import takes_settings

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


@takes_settings(RowSettings)
def tokenized_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    **settings: Unpack[RowSettings],
) -> SFTDataset | PackedDataset:
    """Return tokens as the data has them (`input_ids`, `labels`), or `segments` of text that are learnt or not.

    No BOS, EOS or template is added. See `tune.data.TokenizedToExamples` for the columns.

    Args:
        tokenizer: has to be the one of the tokens; gives the ids of segments, special tokens in them included.
        source: hub name, local json, jsonl or parquet file, folder, or "json" with `data_files`.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    rows = read_rows(source, settings)
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
        message_transform=TokenizedToExamples(tokenizer, settings["ignore_columns"] or ()),
        max_seq_len=settings["max_seq_len"],
        on_too_long=settings["on_too_long"],
    )
    dataset.report().template = ""
    return PackedDataset(dataset) if settings["packed"] else dataset
