"""Conversations of several turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune.data import (
    ChatToMessages,
    LearntAnswers,
    OpenAIToMessages,
    PromptTemplate,
    ShareGPTToMessages,
    Source,
    find_chat_columns,
    get_prompt_template,
)
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.errors import ConfigError
from tune.tokenizers.family_format import template_of
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.templates import AnyTemplate, PlainTemplate, template_names

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


def chat_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    conversation_column: str | None = None,
    conversation_style: Literal["auto", "openai", "sharegpt"] = "auto",
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
    parse_special_tokens: bool | None = None,
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
        conversation_style: "openai" has role and content, "sharegpt" from and value; "auto" takes either.
        column_map: `answer` to the column of a message, or messages, that follow the conversation, and alone are
            learnt; `system` and `tools` to theirs; `messages` says the same as `conversation_column`.
        message_keys: `role` and `content`, each to its key in a message, where these are not known.
        roles: names of roles that are not known, each to one that is: {narrator: user}.
        on_odd_turns: what to do with turns out of order: two of one role in a row, an answer first, a system message
            in the middle. "error" lists them, "merge" joins them, "trim" keeps what comes before.
        ignore_columns: columns that are not read, and not reported as unused.
        train_on_input: learn the messages of user and system too.
        train_on: "all" answers, or the "last" of each conversation alone.
        train_on_reasoning: False reads what is thought before an answer, and does not learn it.
        prompt_template: how turns are written: "chat" for the checkpoint's chat template, a name such as "llama3",
            a .jinja file, or texts as in `instruct_dataset`. By default the tokenizer's own, then the
            checkpoint's; for a Llama 2 tokenizer that has neither, "llama2_chat".
        chat_template_kwargs: further names that the chat template reads: {enable_thinking: false}.
        parse_special_tokens: special tokens written out in the data are meant as such, no second end is added; False
            keeps them text. By default data that is in a chat format already is an error.
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
    columns = find_chat_columns(
        [*rows.peeked()], rows.columns, conversation_column, column_map, rows.report.source
    )
    if conversation_style not in _TRANSFORMS:
        raise ConfigError(
            f"dataset.conversation_style is {conversation_style!r}, expected 'openai' (role, content), 'sharegpt' "
            "(from, value) or 'auto'"
        )
    transform = _TRANSFORMS[conversation_style](
        train_on_input,
        columns.column_map(),
        new_system_prompt,
        message_keys=message_keys,
        roles=roles,
        on_odd_turns=on_odd_turns,
        ignore_columns=ignore_columns or (),
    )
    rows.report.format = str(columns)
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=LearntAnswers(transform, train_on, train_on_reasoning),
        prompt_template=template,
        system_prompt=new_system_prompt,
        chat_template_kwargs=chat_template_kwargs,
        parse_special_tokens=parse_special_tokens,
        max_seq_len=max_seq_len,
        on_too_long=on_too_long,
    )
    return PackedDataset(dataset) if packed else dataset


_TRANSFORMS = {"auto": ChatToMessages, "openai": OpenAIToMessages, "sharegpt": ShareGPTToMessages}


def _default_template(tokenizer: Tokenizer) -> str | AnyTemplate:
    """Return the template that belongs to a tokenizer. Raises ConfigError where none does."""
    template = template_of(tokenizer)
    if tokenizer.prompt_template is None and (template is None or isinstance(template, PlainTemplate)):
        # A family whose builder writes no turns is better served by its checkpoint.
        template = tokenizer.chat_template or template
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
