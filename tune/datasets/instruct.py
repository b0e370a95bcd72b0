"""Prompts and answers in a template of one's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune.data import (
    AlpacaInstructTemplate,
    InputOutputToMessages,
    LearntAnswers,
    PromptTemplate,
    Source,
    find_instruction_columns,
    get_prompt_template,
)
from tune.datasets.alpaca import alpaca_from_rows
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.tokenizers.family_format import template_of

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

# How prompts are written where neither the dataset nor the tokenizer says, by the column they stand in.
# Prompts that come with completions carry their own separators.
_DEFAULT_TEMPLATES = {"question": "question_answer", "prompt": "plain"}


def instruct_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    train_on: Literal["all", "last"] = "all",
    train_on_reasoning: bool = True,
    prompt_template: str | dict[str, list[str]] | PromptTemplate | None = None,
    new_system_prompt: str | None = None,
    parse_special_tokens: bool | None = None,
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
    """Return prompts with their answers.

    Columns are recognised by name: instruction/(input)/output, prompt/completion, question/answer, input/output.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.
        column_map: `input` and `output`, each to its column, where names are not recognised; `system` to that of a
            system prompt, `history` to that of earlier pairs of prompt and answer, `tools` to that of tools.
        train_on_input: learn the prompt too; False learns answers and their EOS alone.
        train_on: "all" answers, or the "last" alone, where a row holds earlier ones.
        train_on_reasoning: False reads what is thought before an answer, in <think> tags, and does not learn it.
        prompt_template: "alpaca", "question_answer", "chatml", "llama2_chat", "plain" and others, or a mapping
            {user: [before, after], assistant: [before, after]}. By default the tokenizer's; else
            question_answer for question/answer, plain for prompt/completion, alpaca for the rest.
        new_system_prompt: a system message for every example, in place of the data's own.
        parse_special_tokens: special tokens written out in the data are meant as such, no second end is added; False
            keeps them text. By default data that is in a chat format already is an error.
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
    columns = find_instruction_columns(
        rows.columns, column_map, input_is_context=False, source=rows.report.source
    )
    ignored = ignore_columns or ()
    spec = (
        prompt_template or template_of(tokenizer) or _DEFAULT_TEMPLATES.get(columns.prompt.lower(), "alpaca")
    )
    template = get_prompt_template(spec)
    if isinstance(template, AlpacaInstructTemplate) and not new_system_prompt:
        # Alpaca has a prompt of its own for instructions that come with an input.
        choice = (train_on_input, train_on, train_on_reasoning)
        return alpaca_from_rows(
            tokenizer,
            rows,
            columns,
            *choice,
            packed=packed,
            max_seq_len=max_seq_len,
            on_too_long=on_too_long,
            ignore_columns=ignored,
            parse_special_tokens=parse_special_tokens,
        )
    rows.report.format = str(columns)
    column_map = columns.column_map("input", "context")
    transform = InputOutputToMessages(train_on_input, column_map, new_system_prompt, ignored)
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=LearntAnswers(transform, train_on, train_on_reasoning),
        prompt_template=template,
        system_prompt=new_system_prompt,
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
        parse_special_tokens=parse_special_tokens,
    )
    return PackedDataset(dataset) if packed else dataset
