"""Pairs of a better and a worse answer, and answers that are judged one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from tune.data import ConversationTokenizer, PromptTemplate, get_prompt_template
from tune.data.packing import join_examples
from tune.data.preference_columns import PreferenceColumns, find_judged_columns, find_preference_columns
from tune.data.preference_rows import JudgedToMessages, PairToMessages
from tune.data.tokenize_preferences import JudgedTokenizer, PairTokenizer, read_number
from tune.datasets.packed import PackedDataset
from tune.datasets.row_settings import ConversationSettings, PackedSettings, SourceSettings, read_rows
from tune.datasets.sft import SFTDataset
from tune.errors import ConfigError
from tune.tokenizers.family_format import conversation_template_of
from tune.utils.settings import Setting, takes_settings

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer
    from tune.tokenizers.templates import AnyTemplate

_TOO_LONG = ("cut", "drop", "error")


class PreferenceDataset(SFTDataset):
    """Pairs of answers to one prompt: an item is both conversations, the chosen one first, as documents of one row.

    Items are `{"tokens", "labels", "input_pos"}`; positions begin anew with the rejected conversation. Where rows say
    by how much the chosen answer is better, items have `margins` as well, a list of one. A pair whose longer side has
    more tokens than the limit is cut on both sides at the limit, or left out where a cut would take all of an answer.
    Arguments are those of `SFTDataset`, whose transform is a `PairToMessages`.

    Attributes:
        document_names: what the documents of an item are.
    """

    document_names = ("chosen", "rejected")

    def __init__(self, tokenizer: Tokenizer, *, message_transform: PairToMessages, **settings: Any) -> None:
        self._has_margins = message_transform.has_margins
        super().__init__(tokenizer, message_transform=message_transform, **settings)

    @staticmethod
    def _job(conversations: ConversationTokenizer) -> PairTokenizer:
        return PairTokenizer(conversations)

    def __len__(self) -> int:
        return len(self._store) // self._num_stored

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        first = self._first(index)
        pair = join_examples([self._store.example(first), self._store.example(first + 1)])
        if self._has_margins:
            pair["margins"] = [read_number(self._store.example(first + 2)["tokens"])]
        return pair

    def length(self, index: int) -> int:
        """Return the number of tokens of both conversations without making them."""
        first = self._first(index)
        return self._store.length(first) + self._store.length(first + 1)

    @property
    def _num_stored(self) -> int:
        return 3 if self._has_margins else 2

    def _first(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} pairs")
        return index % len(self) * self._num_stored


class UnpairedDataset(SFTDataset):
    """Answers that are each judged good or bad: items are `{"tokens", "labels", "verdict"}`, the last 1 or -1.

    Arguments are those of `SFTDataset`, whose transform is a `JudgedToMessages`.
    """

    def __init__(self, tokenizer: Tokenizer, **settings: Any) -> None:
        super().__init__(tokenizer, **settings)
        good = sum(self[index]["verdict"] > 0 for index in range(len(self)))
        self._report.remarks.append(f"{good:,} answers are judged good, {len(self) - good:,} bad")

    @staticmethod
    def _job(conversations: ConversationTokenizer) -> JudgedTokenizer:
        return JudgedTokenizer(conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = self._store.example(index)
        weights = example.pop("weights", ())
        return {**example, "verdict": -1 if any(weight < 0 for weight in weights) else 1}


class PreferenceSettings(SourceSettings, ConversationSettings, total=False):
    """Those of answers that are compared, or judged."""

    train_on_input: Annotated[
        bool, Setting(False, "count the prompt's tokens into each answer's log-probability.")
    ]
    prompt_template: Annotated[
        str | dict[str, list[str]] | PromptTemplate | None,
        Setting(
            None,
            "how turns are written, as in `chat_dataset`; without one a prompt and its answer are written as "
            '"question_answer" where the column is called question, else "plain".',
        ),
    ]
    parse_special_tokens: Annotated[
        bool | None,
        Setting(None, "special tokens written out in the data are meant as such; False keeps them text."),
    ]
    ignore_columns: Annotated[
        list[str] | None, Setting(None, "columns that are not read, and not reported as unused.")
    ]
    on_too_long: Annotated[
        Literal["cut", "drop", "error"],
        Setting(
            "cut",
            "cut both conversations of a pair at `max_seq_len`, drop such pairs, or stop with an error.",
        ),
    ]


class PairSettings(PreferenceSettings, PackedSettings, total=False):
    """Those of pairs, of which several may share a row of twice `max_seq_len` tokens."""


@takes_settings(PairSettings)
def preference_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    column_map: dict[str, str] | None = None,
    **settings: Unpack[PairSettings],
) -> PreferenceDataset | PackedDataset:
    """Return pairs of answers, of which one is better: for DPO and its kin.

    The answers are texts with a prompt beside them, messages that follow a prompt, or whole conversations that begin
    alike: lists of messages, or texts such as "\\n\\nHuman: ...\\n\\nAssistant: ...". Columns are recognised by name:
    chosen/rejected, chosen_messages/rejected_messages, preferred_output/non_preferred_output, response_j/response_k;
    and for the prompt prompt, question, instruction (with input), input, messages, conversations. A column `margin`
    says by how much the chosen answer is better, which reward models are trained with.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.
        column_map: `chosen`, `rejected`, `prompt`, `context` (text that follows it), `margin`, `system`, `tools`, each
            to its column.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    rows = read_rows(source, settings)
    columns = find_preference_columns(rows.columns, column_map, rows.report.source)
    if columns.margin in (settings["ignore_columns"] or ()):
        columns = replace(columns, margin=None)
    rows.report.format = f"{columns}, in pairs"
    transform = PairToMessages(columns, *_reading(settings))
    dataset = PreferenceDataset(
        tokenizer, source=rows, message_transform=transform, **_writing(tokenizer, columns, settings)
    )
    return _pack(dataset) if settings["packed"] else dataset


@takes_settings(PairSettings)
def unpaired_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    column_map: dict[str, str] | None = None,
    **settings: Unpack[PairSettings],
) -> UnpairedDataset:
    """Return answers that are each judged good or bad, for KTO; other arguments as in `preference_dataset`.

    They are not packed: they are compared with other prompts, for which they are told apart by their rows.

    A row holds a prompt, an answer (completion, response, output, answer) and a verdict (label, kto_tag), true for a
    good answer; or a whole conversation (messages) and a verdict. A row with two answers, as `preference_dataset` reads
    it, becomes a good one and a bad one.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.
        column_map: `prompt`, `context`, `completion`, `label`, `system`, `tools`, each to its column.

    Raises:
        ConfigError, DataError: as `preference_dataset`.
    """
    if settings["packed"]:
        raise ConfigError(
            "dataset.packed: judged answers have a row each, since they are compared with other prompts"
        )
    rows = read_rows(source, settings)
    columns = find_judged_columns(rows.columns, column_map, rows.report.source)
    rows.report.format = str(columns)
    transform = JudgedToMessages(columns, *_reading(settings))
    return UnpairedDataset(
        tokenizer, source=rows, message_transform=transform, **_writing(tokenizer, columns, settings)
    )


@takes_settings(PairSettings)
def hh_rlhf_helpful_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "RLHFlow/HH-RLHF-Helpful-standard",
    column_map: dict[str, str] | None = None,
    **settings: Unpack[PairSettings],
) -> PreferenceDataset | PackedDataset:
    """Return the helpful part of HH-RLHF, as conversations; arguments as in `preference_dataset`."""
    return preference_dataset(tokenizer, source=source, column_map=column_map, **settings)


@takes_settings(PairSettings)
def stack_exchange_paired_dataset(
    tokenizer: Tokenizer,
    *,
    source: str = "lvwerra/stack-exchange-paired",
    column_map: dict[str, str] | None = None,
    **settings: Unpack[PairSettings],
) -> PreferenceDataset | PackedDataset:
    """Return questions with two answers (question, response_j, response_k); arguments as in `preference_dataset`.

    Without a template of the tokenizer's own they are written as `question_answer`.
    """
    return preference_dataset(tokenizer, source=source, column_map=column_map, **settings)


def _reading(settings: PreferenceSettings) -> tuple[bool, str | None, Mapping[str, str], Sequence[str]]:
    """Return what transforms are told, beside the columns."""
    keys = _checked_keys(settings["message_keys"])
    return settings["train_on_input"], settings["new_system_prompt"], keys, settings["ignore_columns"] or ()


def _writing(
    tokenizer: Tokenizer, columns: PreferenceColumns, settings: PreferenceSettings
) -> dict[str, Any]:
    """Return how conversations are written, as `SFTDataset` takes it."""
    if settings["on_too_long"] not in _TOO_LONG:
        raise ConfigError(
            f"dataset.on_too_long is {settings['on_too_long']!r}, expected one of {', '.join(_TOO_LONG)}"
        )
    return {
        "prompt_template": _template(settings["prompt_template"], tokenizer, columns),
        "system_prompt": settings["new_system_prompt"],
        "chat_template_kwargs": settings["chat_template_kwargs"],
        "parse_special_tokens": settings["parse_special_tokens"],
        "max_seq_len": settings["max_seq_len"],
        "on_too_long": settings["on_too_long"],
    }


def _template(
    told: str | dict[str, list[str]] | PromptTemplate | None, tokenizer: Tokenizer, columns: PreferenceColumns
) -> AnyTemplate:
    """Return how conversations are written: as told, as the tokenizer says, or as questions and answers."""
    template = conversation_template_of(tokenizer)
    if told is not None or template is None:
        default = "question_answer" if (columns.prompt or "").lower() == "question" else "plain"
        return get_prompt_template(told or default)
    return template


def _pack(dataset: PreferenceDataset) -> PackedDataset:
    """Return several pairs to a row, which has room for two conversations of the greatest length."""
    side = dataset.report().max_seq_len
    return PackedDataset(dataset, None if side is None else 2 * side)


def _checked_keys(message_keys: Mapping[str, str] | None) -> Mapping[str, str]:
    if unknown := sorted(set(message_keys or {}) - {"role", "content"}):
        raise ConfigError(f"dataset.message_keys has no part {unknown[0]!r}; parts are role and content")
    return message_keys or {}
