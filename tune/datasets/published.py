"""Published data sets, under the names that torchtune's configs use: general builders, with what is theirs filled in.

Any `source` with the same columns will do in their place, a local file among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from tune.datasets.chat import ChatSettings, chat_dataset
from tune.datasets.instruct import InstructSettings, instruct_dataset
from tune.datasets.packed import PackedDataset
from tune.datasets.sft import SFTDataset
from tune.datasets.text_completion import TextCompletionDataset, TextSettings, text_completion_dataset
from tune.errors import ConfigError
from tune.tokenizers.family_format import template_of
from tune.utils.settings import takes_settings

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


@takes_settings(ChatSettings)
def slimorca_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "Open-Orca/SlimOrca-Dedup",
    column_map: dict[str, str] | None = None,
    **settings: Unpack[ChatSettings],
) -> SFTDataset | PackedDataset:
    """Return the conversations of SlimOrca (from, value); other arguments as in `chat_dataset`.

    Args:
        tokenizer: gives the ids.
        source: any with the same columns.
        column_map: `conversations` to its column; other parts as in `chat_dataset`.

    Raises:
        ConfigError: `column_map` has another part; and as `chat_dataset`.
        DataError: as `chat_dataset`.
    """
    columns = {("messages" if part == "conversations" else part): c for part, c in (column_map or {}).items()}
    return chat_dataset(
        tokenizer, source=source, conversation_style="sharegpt", column_map=columns, **settings
    )


@takes_settings(InstructSettings)
def grammar_dataset(
    tokenizer: Tokenizer, *, source: str = "liweili/c4_200m", **settings: Unpack[InstructSettings]
) -> SFTDataset | PackedDataset:
    """Return faulty sentences with the corrected ones (input, output); other arguments as in `instruct_dataset`.

    Without a template of the tokenizer's own, prompts are written as `grammar_error_correction`."""
    if not template_of(tokenizer):
        settings["prompt_template"] = settings["prompt_template"] or "grammar_error_correction"
    return instruct_dataset(tokenizer, source=source, **settings)


@takes_settings(InstructSettings)
def samsum_dataset(
    tokenizer: Tokenizer, *, source: str = "Samsung/samsum", **settings: Unpack[InstructSettings]
) -> SFTDataset | PackedDataset:
    """Return chats with their summaries (dialogue, summary); other arguments as in `instruct_dataset`.

    Without a template of the tokenizer's own, prompts are written as `summarize`."""
    settings["column_map"] = {"input": "dialogue", "output": "summary"} | (settings["column_map"] or {})
    if not template_of(tokenizer):
        settings["prompt_template"] = settings["prompt_template"] or "summarize"
    return instruct_dataset(tokenizer, source=source, **settings)


@takes_settings(TextSettings)
def wikitext_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "EleutherAI/wikitext_document_level",
    column: str = "page",
    subset: str = "wikitext-103-raw-v1",
    **settings: Unpack[TextSettings],
) -> TextCompletionDataset | PackedDataset:
    """Return the articles of WikiText as plain text; `subset` is the `name` of others.

    Other arguments are those of `text_completion_dataset`.
    """
    if settings["name"] not in (None, subset):
        raise ConfigError(
            f"dataset.name is {settings['name']!r} and dataset.subset {subset!r}, which are one thing here: set subset"
        )
    settings["name"] = subset
    return text_completion_dataset(tokenizer, source=source, column=column, **settings)


@takes_settings(TextSettings)
def cnn_dailymail_articles_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "ccdv/cnn_dailymail",
    column: str = "article",
    **settings: Unpack[TextSettings],
) -> TextCompletionDataset | PackedDataset:
    """Return the articles of CNN / DailyMail as plain text; other arguments as in `text_completion_dataset`.

    Without a `name` it is version 3.0.0."""
    settings["name"] = settings["name"] or "3.0.0"
    return text_completion_dataset(tokenizer, source=source, column=column, **settings)
