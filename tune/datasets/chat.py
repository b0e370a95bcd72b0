"""Conversations of several turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune.data import (
    LearntAnswers,
    OpenAIToMessages,
    PromptTemplate,
    ShareGPTToMessages,
    Source,
    find_conversation_column,
    get_prompt_template,
)
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.errors import ConfigError
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.templates import AnyTemplate, template_names

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


def chat_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    conversation_column: str | None = None,
    conversation_style: Literal["auto", "openai", "sharegpt"] = "auto",
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
) -> SFTDataset | PackedDataset:
    """Return conversations; every answer of the assistant is learnt, unless flags on messages say otherwise.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl or parquet file, folder, or "json" with `data_files`.
        conversation_column: holds the list of messages; `messages` and `conversations` are recognised.
        conversation_style: "openai" has role and content, "sharegpt" from and value; "auto" looks which.
        train_on_input: learn the messages of user and system too.
        train_on: "all" answers, or the "last" of each conversation alone.
        train_on_reasoning: False reads what is thought before an answer, and does not learn it.
        prompt_template: how turns are written: "chat" for the checkpoint's chat template, a name such as "llama3",
            a .jinja file, or texts as in `instruct_dataset`. By default the tokenizer's own, then the
            checkpoint's; for a Llama 2 tokenizer that has neither, "llama2_chat".
        chat_template_kwargs: further names that the chat template reads: {enable_thinking: false}.
        new_system_prompt: replaces the system message of every conversation.
        packed: put several conversations into one sequence of `max_seq_len` tokens, none seeing another.
        max_seq_len: tokens to keep of a conversation; by default the tokenizer's limit.
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
    template = get_prompt_template(prompt_template or _default_template(tokenizer))
    rows = RowReader(Source(source, split, data_files, name, revision, field, limit), on_bad_rows)
    column = find_conversation_column(rows.columns, conversation_column, rows.report.source)
    style = _find_style(rows, column) if conversation_style == "auto" else conversation_style
    if style == "openai":
        transform: OpenAIToMessages | ShareGPTToMessages = OpenAIToMessages(
            train_on_input, {"messages": column}, new_system_prompt
        )
    elif style == "sharegpt":
        transform = ShareGPTToMessages(train_on_input, {"conversations": column}, new_system_prompt)
    else:
        raise ConfigError(
            f"dataset.conversation_style is {style!r}, expected 'openai' (role, content), 'sharegpt' (from, value) "
            "or 'auto'"
        )
    rows.report.format = f"{column}, {style} style"
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=LearntAnswers(transform, train_on, train_on_reasoning, train_on_input),
        prompt_template=template,
        system_prompt=new_system_prompt,
        chat_template_kwargs=chat_template_kwargs,
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
    )
    return PackedDataset(dataset) if packed else dataset


def _default_template(tokenizer: Tokenizer) -> str | AnyTemplate:
    """Return the template that belongs to a tokenizer. Raises ConfigError where none does."""
    template = tokenizer.prompt_template or tokenizer.chat_template
    if template is not None:
        return template
    if _is_llama2(tokenizer):
        return "llama2_chat"
    raise ConfigError(
        "this tokenizer comes without a chat template, so it must be said how conversations are written: set "
        f"dataset.prompt_template to one of {', '.join(template_names()[:-1])}, or to a .jinja file. A model that was "
        "never trained on conversations can learn any whose special tokens its tokenizer has"
    )


def _is_llama2(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer without a chat template is that of Llama 2, as Meta ships it, or of its kin."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.token(tokenizer.bos_id) == "<s>"
    # The same one as tokenizer.json: no tokens to write turns with, and bytes for what it has no piece for.
    return (
        isinstance(tokenizer, HFTokenizer)
        and set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>"}
        and tokenizer.token_id("<0x0A>") is not None
    )


def _find_style(rows: RowReader, column: str) -> str:
    """Return the style of the first conversation that shows one; faulty ones are reported when read."""
    for values in rows.peeked():
        turns = values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "sharegpt" if "from" in turns[0] and "role" not in turns[0] else "openai"
    return "openai"
