"""Published data sets, under the names that torchtune's configs use: general builders, with what is theirs filled in.

Any `source` with the same columns will do in their place, a local file among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune.data import PromptTemplate
from tune.datasets.chat import chat_dataset
from tune.datasets.instruct import instruct_dataset
from tune.datasets.packed import PackedDataset
from tune.datasets.sft import SFTDataset
from tune.datasets.text_completion import TextCompletionDataset, text_completion_dataset
from tune.tokenizers.family_format import template_of

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


def slimorca_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "Open-Orca/SlimOrca-Dedup",
    column_map: dict[str, str] | None = None,
    message_keys: dict[str, str] | None = None,
    roles: dict[str, str] | None = None,
    on_odd_turns: Literal["error", "merge", "trim"] = "error",
    ignore_columns: list[str] | None = None,
    train_on_input: bool = False,
    train_on: Literal["all", "last"] = "all",
    train_on_reasoning: bool = True,
    prompt_template: str | dict[str, list[str]] | PromptTemplate | None = None,
    chat_template_kwargs: dict[str, str | bool | int | float] | None = None,
    new_system_prompt: str | None = None,
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
    parse_special_tokens: bool | None = None,
) -> SFTDataset | PackedDataset:
    """Return the conversations of SlimOrca (from, value); other arguments as in `chat_dataset`.

    Args:
        tokenizer: gives the ids.
        column_map: `conversations` to its column; other parts as in `chat_dataset`.

    Raises:
        ConfigError: `column_map` has another part; and as `chat_dataset`.
        DataError: as `chat_dataset`.
    """
    columns = {("messages" if part == "conversations" else part): c for part, c in (column_map or {}).items()}
    return chat_dataset(
        tokenizer,
        source=source,
        conversation_style="sharegpt",
        column_map=columns,
        message_keys=message_keys,
        roles=roles,
        on_odd_turns=on_odd_turns,
        ignore_columns=ignore_columns,
        train_on_input=train_on_input,
        train_on=train_on,
        train_on_reasoning=train_on_reasoning,
        prompt_template=prompt_template,
        chat_template_kwargs=chat_template_kwargs,
        new_system_prompt=new_system_prompt,
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
        parse_special_tokens=parse_special_tokens,
    )


def grammar_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "liweili/c4_200m",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    prompt_template: str | dict[str, list[str]] | PromptTemplate | None = None,
    new_system_prompt: str | None = None,
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
    parse_special_tokens: bool | None = None,
) -> SFTDataset | PackedDataset:
    """Return faulty sentences with the corrected ones (input, output); other arguments as in `instruct_dataset`.

    Without a template of the tokenizer's own, prompts are written as `grammar_error_correction`."""
    return instruct_dataset(
        tokenizer,
        source=source,
        column_map=column_map,
        train_on_input=train_on_input,
        prompt_template=prompt_template or (None if template_of(tokenizer) else "grammar_error_correction"),
        new_system_prompt=new_system_prompt,
        ignore_columns=ignore_columns,
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
        parse_special_tokens=parse_special_tokens,
    )


def samsum_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "Samsung/samsum",
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    prompt_template: str | dict[str, list[str]] | PromptTemplate | None = None,
    new_system_prompt: str | None = None,
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
    parse_special_tokens: bool | None = None,
) -> SFTDataset | PackedDataset:
    """Return chats with their summaries (dialogue, summary); other arguments as in `instruct_dataset`.

    Without a template of the tokenizer's own, prompts are written as `summarize`."""
    return instruct_dataset(
        tokenizer,
        source=source,
        column_map={"input": "dialogue", "output": "summary"} | (column_map or {}),
        train_on_input=train_on_input,
        prompt_template=prompt_template or (None if template_of(tokenizer) else "summarize"),
        new_system_prompt=new_system_prompt,
        ignore_columns=ignore_columns,
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
        parse_special_tokens=parse_special_tokens,
    )


def wikitext_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "EleutherAI/wikitext_document_level",
    column: str = "page",
    add_eos: bool = True,
    packed: bool = False,
    max_seq_len: int | None = None,
    split: str = "train",
    data_files: str | list[str] | dict[str, str | list[str]] | None = None,
    subset: str = "wikitext-103-raw-v1",
    revision: str | None = None,
    field: str | None = None,
    limit: int | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
    on_too_long: Literal["cut", "drop", "error", "split"] = "split",
    parse_special_tokens: bool | None = None,
) -> TextCompletionDataset | PackedDataset:
    """Return the articles of WikiText as plain text; other arguments as in `text_completion_dataset`."""
    return text_completion_dataset(
        tokenizer,
        source=source,
        column=column,
        add_eos=add_eos,
        packed=packed,
        max_seq_len=max_seq_len,
        split=split,
        data_files=data_files,
        name=subset,
        revision=revision,
        field=field,
        limit=limit,
        on_bad_rows=on_bad_rows,
        on_too_long=on_too_long,
        parse_special_tokens=parse_special_tokens,
    )


def cnn_dailymail_articles_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "ccdv/cnn_dailymail",
    column: str = "article",
    add_eos: bool = True,
    packed: bool = False,
    max_seq_len: int | None = None,
    split: str = "train",
    data_files: str | list[str] | dict[str, str | list[str]] | None = None,
    name: str | None = "3.0.0",
    revision: str | None = None,
    field: str | None = None,
    limit: int | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
    on_too_long: Literal["cut", "drop", "error", "split"] = "split",
    parse_special_tokens: bool | None = None,
) -> TextCompletionDataset | PackedDataset:
    """Return the articles of CNN / DailyMail as plain text; other arguments as in `text_completion_dataset`."""
    return text_completion_dataset(
        tokenizer,
        source=source,
        column=column,
        add_eos=add_eos,
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
        parse_special_tokens=parse_special_tokens,
    )
