"""Which columns hold the prompt and which the answer: recognised by name, or told, never guessed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune.errors import ConfigError, DataError
from tune.utils.escape import escape_control

_Format = tuple[str, str, str | None]
# prompt column, answer columns, columns of further text for the prompt
_INSTRUCTION_FORMATS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("instruction", ("output", "response"), ("input", "context")),
    ("prompt", ("completion", "response", "generation"), ()),
    ("question", ("answer", "response"), ("context", "article")),
    ("input", ("output",), ()),
    ("article", ("summary", "highlights"), ()),
    ("dialogue", ("summary",), ()),
    ("message_1", ("message_2",), ()),
)
# Beside another prompt these are further text for it.
_CONTEXT_NAMES = ("input", "article", "dialogue")
_PROMPT_NAMES = ("instruction", "prompt", "question")
_ANSWER_NAMES = ("output", "completion", "response", "answer")
_SYSTEM_NAMES = ("system", "system_prompt", "system_message")
# Parts that may be told, but have to be there in no row.
_OPTIONAL_PARTS = ("system", "history", "tools")
# Names that a misspelt one is compared with, for comparing takes long.
_MAX_COMPARED, _MAX_COMPARED_LENGTH = 1000, 100
# The second is what OpenAI called them first.
TOOL_COLUMNS = ("tools", "functions")
LEARNT_BY = "the recipe preference_finetune does (dataset=preference; for KTO dataset=unpaired)"
# The good answer, the bad one.
PREFERENCE_PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
)
CHAT_NAMES = ("messages", "conversations", "conversation")
# What a row of another task holds: names of columns, what they are, and what can be done.
_OTHER_TASKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("completions", "labels"), "stepwise supervision, from which reward models learn"),
    (("input_ids",), "tokens: use tokenized_dataset (in a config: dataset=tokenized)"),
    (("segments",), "segments of text: use tokenized_dataset (in a config: dataset=tokenized)"),
)


@dataclass(frozen=True)
class InstructionColumns:
    """Names of the columns that hold a prompt, text that belongs to it, the answer, and what comes before them."""

    prompt: str
    answer: str
    context: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None

    def __str__(self) -> str:
        context = f" + {self.context}" if self.context else ""
        before = [name for name in (self.system, self.history, self.tools) if name]
        return f"{self.prompt}{context} -> {self.answer}{f', with {list_names(before)}' if before else ''}"

    def column_map(self, prompt_part: str, context_part: str) -> dict[str, str]:
        """Return each part to its column, as transforms take it."""
        # A name that no row has reads as no input.
        parts = {prompt_part: self.prompt, "output": self.answer, context_part: self.context or ""}
        before = {"system": self.system, "history": self.history, "tools": self.tools}
        return parts | {part: column for part, column in before.items() if column}


def find_instruction_columns(
    columns: Sequence[str],
    column_map: Mapping[str, str] | None = None,
    *,
    input_is_context: bool = True,
    source: str = "the data",
) -> InstructionColumns:
    """Return which columns hold prompt and answer.

    Args:
        columns: names in the data.
        column_map: from a part to the column that holds it: `instruction` (or `prompt`, `question`),
            `input`, `output` (or `completion`, `response`, `answer`), `system`, `history`, `tools`. Parts left out are
            recognised.
        input_is_context: `input` in the map is further text for the prompt, as in Alpaca; otherwise it is
            the prompt itself, unless another part of the map is.
        source: what errors call the data.

    Raises:
        ConfigError: the map names unknown parts or columns.
        DataError: the columns are of no known format, or of several.
    """
    told = _read_map(columns, column_map or {}, input_is_context)
    before = [told.pop(part, None) or known_part(columns, part) for part in _OPTIONAL_PARTS]
    formats = [_complete(columns, told)] if told else known_formats(columns)
    found = [InstructionColumns(*parts, *before) for parts in formats]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"the columns of {source} can be read in {len(found)} ways: {'; '.join(map(str, found))}. Choose with "
            f"{_settings(input_is_context, found[0].prompt, found[0].answer)}"
        )
    raise DataError(_not_recognised(columns, input_is_context, source))


def find_text_column(columns: Sequence[str], told: str | None = None, source: str = "the data") -> str:
    """Return the column that holds plain text.

    Raises:
        ConfigError: the column told is not there.
        DataError: there is no column `text`, and not just a single column.
    """
    if told is not None:
        check_exists(told, columns, "dataset.column")
        return told
    if "text" in columns:
        return "text"
    hint = ""
    if any(name in columns for name in CHAT_NAMES):
        hint = ". These look like conversations: use chat_dataset (in a config: dataset=chat)"
    elif known_formats(columns):
        hint = ". These look like prompts and answers: use instruct_dataset (in a config: dataset=instruct)"
    elif len(columns) == 1:
        return columns[0]
    raise DataError(
        f"{source} has no column 'text': found {list_names(columns)}. Name it with dataset.column=COLUMN{hint}"
    )


def known_formats(columns: Sequence[str]) -> list[_Format]:
    """Return every way to read the columns as (prompt, answer, context)."""
    # INSTRUCTION is a name of `instruction`, too.
    by_name = {name.lower(): name for name in reversed(columns)}
    found: list[_Format] = []
    for prompt, usual, contexts in _INSTRUCTION_FORMATS:
        if prompt not in by_name or (prompt in _CONTEXT_NAMES and by_name.keys() & _PROMPT_NAMES):
            continue
        context = next((by_name[name] for name in contexts if name in by_name), None)
        found += [(by_name[prompt], by_name[answer], context) for answer in usual if answer in by_name]
    if found:
        return found
    prompts = [by_name[name] for name in _PROMPT_NAMES if name in by_name]
    answers = [by_name[name] for name in _ANSWER_NAMES if name in by_name]
    return [(prompt, answer, None) for prompt in prompts for answer in answers]


def known_part(columns: Sequence[str], part: str) -> str | None:
    """Return the column that is known to hold a part beside prompt and answer, None where there is none."""
    names = {"system": _SYSTEM_NAMES, "tools": TOOL_COLUMNS}.get(part, (part,))
    return next((name for name in names if name in columns), None)


def _read_map(
    columns: Sequence[str], column_map: Mapping[str, str], input_is_context: bool
) -> dict[str, str]:
    told: dict[str, str] = {}
    names_prompt = any(part in column_map for part in _PROMPT_NAMES)
    for part, column in column_map.items():
        if part in _PROMPT_NAMES:
            role = "prompt"
        elif part in _ANSWER_NAMES:
            role = "answer"
        elif part in _OPTIONAL_PARTS:
            role = part
        elif part == "input":
            role = "context" if input_is_context or names_prompt else "prompt"
        else:
            raise ConfigError(
                f"dataset.column_map has no part {part!r}; parts are {', '.join(_PROMPT_NAMES)}, input, "
                f"{', '.join((*_ANSWER_NAMES, *_OPTIONAL_PARTS))}, each mapped to a column of the data "
                f"({list_names(columns)})"
            )
        if role in told:
            raise ConfigError(f"dataset.column_map names the {role} twice: {told[role]!r} and {column!r}")
        check_exists(column, columns, f"dataset.column_map.{part}")
        told[role] = column
    if len(set(told.values())) < len(told):
        raise ConfigError(f"dataset.column_map gives one column to two parts: {dict(column_map)}")
    return told


def _complete(columns: Sequence[str], told: Mapping[str, str]) -> _Format:
    """Fills in what the map leaves out, where one column alone has a name for it."""
    chosen = dict(told)
    for role, names in (("prompt", (*_PROMPT_NAMES, "input")), ("answer", _ANSWER_NAMES)):
        if role in chosen:
            continue
        found = [name for name in names if name in columns and name not in chosen.values()]
        # `input` is the prompt only where nothing else is.
        found = [name for name in found if name != "input"] or found
        if len(found) != 1:
            raise DataError(
                f"dataset.column_map leaves the {role} open, and {'several columns' if found else 'no column'} "
                f"could hold it: {list_names(found or columns)}. Name it in the map too"
            )
        chosen[role] = found[0]
    context = chosen.get("context") or _literal_input(columns, chosen)
    return chosen["prompt"], chosen["answer"], context


def _literal_input(columns: Sequence[str], told: Mapping[str, str]) -> str | None:
    is_free = "input" in columns and "input" not in told.values()
    return "input" if is_free and told["prompt"] == "instruction" else None


def check_exists(column: str, columns: Sequence[str], setting: str) -> None:
    if column not in columns:
        short = [name for name in columns[:_MAX_COMPARED] if len(name) <= _MAX_COMPARED_LENGTH]
        near = difflib.get_close_matches(str(column)[:_MAX_COMPARED_LENGTH], short, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{setting} is {column!r}, but the data has {list_names(columns)}{hint}")


def _not_recognised(columns: Sequence[str], input_is_context: bool, source: str) -> str:
    text = f"cannot tell which columns of {source} hold prompts and answers: found {list_names(columns)}. "
    chat = [name for name in CHAT_NAMES if name in columns]
    if chat:
        return text + f"{chat[0]!r} looks like conversations: use chat_dataset (in a config: dataset=chat)"
    if list(columns) == ["text"]:
        return text + PLAIN_TEXT
    if (pair := _preference_pair(columns)) is not None:
        prompt = next((name for name in _PROMPT_NAMES if name in columns), "COLUMN")
        map_ = "dataset.column_map"
        return text + (
            f"{pair[0]!r} and {pair[1]!r} are preference pairs, which this recipe does not learn from: {LEARNT_BY}. "
            f"To learn the {pair[0]} answers alone: {_settings(input_is_context, prompt, pair[0])}; where they are "
            f"messages, dataset=chat {map_}.messages={prompt} {map_}.answer={pair[0]}, or {map_}.messages={pair[0]} "
            "for whole conversations"
        )
    if other := other_task(columns):
        return text + other
    if "prompt" in columns:
        text += "A prompt alone teaches nothing: the answer has to be in the data. "
    return text + (
        f"Say so with {_settings(input_is_context)}; known without a map are "
        + ", ".join(f"{prompt}/{'|'.join(answers)}" for prompt, answers, _ in _INSTRUCTION_FORMATS)
    )


PLAIN_TEXT = "'text' alone is plain text: use text_completion_dataset (in a config: dataset=text_completion)"


def _preference_pair(columns: Sequence[str]) -> tuple[str, str] | None:
    return next((pair for pair in PREFERENCE_PAIRS if set(pair) <= set(columns)), None)


def other_task(columns: Sequence[str]) -> str:
    """Return what columns hold that are neither prompts nor conversations, "" where that is not known."""
    if (pair := _preference_pair(columns)) is not None:
        prompt = next((name for name in (*_PROMPT_NAMES, "input") if name in columns), None)
        told = f"messages={prompt} dataset.column_map.answer={pair[0]}" if prompt else f"messages={pair[0]}"
        return (
            f"{pair[0]!r} and {pair[1]!r} are preference pairs, which this recipe does not learn from: {LEARNT_BY}. "
            f"dataset.column_map.{told} learns the {pair[0]} answers alone"
        )
    return next(
        (f"{names[-1]!r} is {what}" for names, what in _OTHER_TASKS if set(names) <= set(columns)),
        PLAIN_TEXT if list(columns) == ["text"] else "",
    )


def _settings(input_is_context: bool, prompt: str = "COLUMN", answer: str = "COLUMN") -> str:
    """Return what to write on a command line; braces would need quotes there."""
    part = "instruction" if input_is_context else "input"
    return f"dataset.column_map.{part}={prompt} dataset.column_map.output={answer}"


def list_names(columns: Sequence[str], limit: int = 12) -> str:
    """Return the names of columns, fit for a message: no more than `limit`, none too long."""
    names = [escape_control(name, 60) if name.strip() else repr(name[:60]) for name in columns[:limit]]
    return (", ".join(names) + (", ..." if len(columns) > limit else "")) or "no columns"
