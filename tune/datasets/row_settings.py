"""What the builders of datasets have in common: each setting of rows, declared once, and the steps that heed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from tune.data import LearntAnswers, MessageTransform, Source
from tune.datasets.packed import PackedDataset
from tune.datasets.reading import RowReader
from tune.datasets.sft import SFTDataset
from tune.utils.settings import Setting

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


class SourceSettings(TypedDict, total=False):
    """Where rows are, which of them are read, and how long what they make may be."""

    max_seq_len: Annotated[
        int | None, Setting(None, "tokens to keep of an example; by default the tokenizer's limit.")
    ]
    split: Annotated[
        str, Setting("train", "part of the source, with an optional range: train, train[:500], train[90%:].")
    ]
    data_files: Annotated[
        str | list[str] | dict[str, str | list[str]] | None,
        Setting(None, "files or patterns, also by split."),
    ]
    name: Annotated[str | None, Setting(None, "configuration of a hub dataset.")]
    revision: Annotated[str | None, Setting(None, "branch, tag or commit of a hub dataset.")]
    field: Annotated[str | None, Setting(None, "key of a JSON file that holds its rows.")]
    limit: Annotated[int | None, Setting(None, "rows to read at most.")]
    on_bad_rows: Annotated[
        Literal["error", "drop"],
        Setting("error", "stop at rows that are malformed or hold nothing to learn, or leave them out."),
    ]


class WrittenTokenSettings(TypedDict, total=False):
    """Those of text, in which special tokens may be written out."""

    parse_special_tokens: Annotated[
        bool | None,
        Setting(
            None,
            "special tokens written out in the data are meant as such, no second end is added; False keeps them text. "
            "By default data that is in a chat format already is an error.",
        ),
    ]


class ConversationSettings(TypedDict, total=False):
    """Those of lists of messages."""

    message_keys: Annotated[
        dict[str, str] | None,
        Setting(None, "`role` and `content`, each to its key in a message, where these are not known."),
    ]
    chat_template_kwargs: Annotated[
        dict[str, str | bool | int | float] | None,
        Setting(None, "further names that the chat template reads: {enable_thinking: false}."),
    ]
    new_system_prompt: Annotated[
        str | None, Setting(None, "replaces the system message of every conversation.")
    ]


class PackedSettings(SourceSettings, total=False):
    """Those of examples that may share a row."""

    packed: Annotated[
        bool,
        Setting(
            False, "put several examples into one sequence of `max_seq_len` tokens, none seeing another."
        ),
    ]


class RowSettings(PackedSettings, total=False):
    """Those of rows that are one example each."""

    on_too_long: Annotated[
        Literal["cut", "drop", "error", "split"],
        Setting(
            "cut",
            "cut what is longer than `max_seq_len`, drop it, stop with an error, or split it into several.",
        ),
    ]
    ignore_columns: Annotated[
        list[str] | None, Setting(None, "columns that are not read, and not reported as unused.")
    ]


class AnswerSettings(RowSettings, WrittenTokenSettings, total=False):
    """Those of rows with answers, which are learnt."""

    train_on: Annotated[
        Literal["all", "last"],
        Setting("all", '"all" answers, or the "last" of each row alone, where it holds earlier ones.'),
    ]
    train_on_reasoning: Annotated[
        bool,
        Setting(
            True, "False reads what is thought before an answer, in <think> tags, and does not learn it."
        ),
    ]


def read_rows(source: str, settings: SourceSettings, **reading: Any) -> RowReader:
    """Return the reader of the rows that the settings name; `reading` is what else `Source` takes.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the source cannot be read, or holds no rows.
    """
    place = Source(
        source,
        split=settings["split"],
        data_files=settings["data_files"],
        name=settings["name"],
        revision=settings["revision"],
        field=settings["field"],
        limit=settings["limit"],
        **reading,
    )
    return RowReader(place, settings["on_bad_rows"])


def answers_dataset(
    tokenizer: Tokenizer,
    rows: RowReader,
    transform: MessageTransform,
    settings: AnswerSettings,
    **writing: Any,
) -> SFTDataset | PackedDataset:
    """Return the answers in `rows` as a dataset.

    Args:
        tokenizer: gives the ids.
        rows: from `read_rows`.
        transform: turns a row into messages.
        settings: those of the builder.
        **writing: how they are written, see `SFTDataset`.
    """
    dataset = SFTDataset(
        tokenizer,
        source=rows,
        message_transform=LearntAnswers(transform, settings["train_on"], settings["train_on_reasoning"]),
        max_seq_len=settings["max_seq_len"],
        on_too_long=settings["on_too_long"],
        parse_special_tokens=settings["parse_special_tokens"],
        **writing,
    )
    return PackedDataset(dataset) if settings["packed"] else dataset
