"""Conversations of several turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Unpack

from tune.data import (
    ChatToMessages,
    OpenAIToMessages,
    PromptTemplate,
    ShareGPTToMessages,
    find_chat_columns,
    get_prompt_template,
)
from tune.datasets.packed import PackedDataset
from tune.datasets.row_settings import AnswerSettings, ConversationSettings, answers_dataset, read_rows
from tune.datasets.sft import SFTDataset
from tune.errors import ConfigError
from tune.tokenizers.family_format import conversation_template_of
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.templates import AnyTemplate, template_names
from tune.utils.settings import Setting, takes_settings

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


class ChatSettings(AnswerSettings, ConversationSettings, total=False):
    """Those of conversations."""

    roles: Annotated[
        dict[str, str] | None,
        Setting(None, "names of roles that are not known, each to one that is: {narrator: user}."),
    ]
    on_odd_turns: Annotated[
        Literal["error", "merge", "trim"],
        Setting(
            "error",
            "what to do with turns out of order: two of one role in a row, an answer first, a system message in the "
            'middle. "error" lists them, "merge" joins them, "trim" keeps what comes before.',
        ),
    ]
    train_on_input: Annotated[bool, Setting(False, "learn the messages of user and system too.")]
    prompt_template: Annotated[
        str | dict[str, list[str]] | PromptTemplate | None,
        Setting(
            None,
            'how turns are written: "chat" for the checkpoint\'s chat template, a name such as "llama3", a .jinja '
            "file, or texts as in `instruct_dataset`. By default the tokenizer's own, then the checkpoint's; for a "
            'Llama 2 tokenizer that has neither, "llama2_chat".',
        ),
    ]


@takes_settings(ChatSettings)
def chat_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    conversation_column: str | None = None,
    conversation_style: Literal["auto", "openai", "sharegpt"] = "auto",
    column_map: dict[str, str] | None = None,
    **settings: Unpack[ChatSettings],
) -> SFTDataset | PackedDataset:
    """Return conversations; every answer of the assistant is learnt, unless flags on messages say otherwise.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl or parquet file, folder, or "json" with `data_files`.
        conversation_column: holds the list of messages; `messages` and `conversations` are recognised.
        conversation_style: "openai" has role and content, "sharegpt" from and value; "auto" takes either.
        column_map: `answer` to the column of a message, or messages, that follow the conversation, and alone are
            learnt; `system` and `tools` to theirs; `messages` says the same as `conversation_column`.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    template = get_prompt_template(settings["prompt_template"] or _default_template(tokenizer))
    rows = read_rows(source, settings)
    columns = find_chat_columns(
        [*rows.peeked()], rows.columns, conversation_column, column_map, rows.report.source
    )
    if conversation_style not in _TRANSFORMS:
        raise ConfigError(
            f"dataset.conversation_style is {conversation_style!r}, expected 'openai' (role, content), 'sharegpt' "
            "(from, value) or 'auto'"
        )
    transform = _TRANSFORMS[conversation_style](
        settings["train_on_input"],
        columns.column_map(),
        settings["new_system_prompt"],
        message_keys=settings["message_keys"],
        roles=settings["roles"],
        on_odd_turns=settings["on_odd_turns"],
        ignore_columns=settings["ignore_columns"] or (),
    )
    rows.report.format = str(columns)
    return answers_dataset(
        tokenizer,
        rows,
        transform,
        settings,
        prompt_template=template,
        system_prompt=settings["new_system_prompt"],
        chat_template_kwargs=settings["chat_template_kwargs"],
    )


_TRANSFORMS = {"auto": ChatToMessages, "openai": OpenAIToMessages, "sharegpt": ShareGPTToMessages}


def _default_template(tokenizer: Tokenizer) -> str | AnyTemplate:
    """Return the template that belongs to a tokenizer. Raises ConfigError where none does."""
    if (template := conversation_template_of(tokenizer)) is not None:
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
