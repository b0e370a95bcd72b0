"""Which columns hold the prompt and which the answer: recognised by name, or told, never guessed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune.errors import ConfigError, DataError
from tune.utils.escape import escape_control

# prompt column, answer columns, columns of further text for the prompt
_INSTRUCTION_FORMATS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("instruction", ("output", "response"), ("input", "context")),
    ("prompt", ("completion", "response"), ()),
    ("question", ("answer", "response"), ()),
    ("input", ("output",), ()),
)
_PROMPT_NAMES = ("instruction", "prompt", "question")
_ANSWER_NAMES = ("output", "completion", "response", "answer")
# Names that a misspelt one is compared with, for comparing takes long.
_MAX_COMPARED, _MAX_COMPARED_LENGTH = 1000, 100
_CHAT_NAMES = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class InstructionColumns:
    """Names of the columns that hold a prompt, text that belongs to it, and the answer."""

    prompt: str
    answer: str
    context: str | None = None

    def __str__(self) -> str:
        context = f" + {self.context}" if self.context else ""
        return f"{self.prompt}{context} -> {self.answer}"

    def describe(self, columns: Sequence[str]) -> str:
        """Return how the columns of some data are read, those that are not used among them."""
        unused = [name for name in columns if name not in (self.prompt, self.answer, self.context)]
        return f"{self}{f', unused: {list_names(unused)}' if unused else ''}"


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
            `input`, `output` (or `completion`, `response`, `answer`). Parts left out are recognised.
        input_is_context: `input` in the map is further text for the prompt, as in Alpaca; otherwise it is
            the prompt itself, unless another part of the map is.
        source: what errors call the data.

    Raises:
        ConfigError: the map names unknown parts or columns.
        DataError: the columns are of no known format, or of several.
    """
    told = _read_map(columns, column_map or {}, input_is_context)
    if told:
        return _complete(columns, told)
    found = [
        InstructionColumns(prompt, answer, context) for prompt, answer, context in _known_formats(columns)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"the columns of {source} can be read in {len(found)} ways: {'; '.join(map(str, found))}. Choose with "
            f"dataset.column_map={{{_parts(input_is_context, found[0])}}}"
        )
    raise DataError(_not_recognised(columns, input_is_context, source))


def find_conversation_column(
    columns: Sequence[str], told: str | None = None, source: str = "the data"
) -> str:
    """Return the column that holds conversations.

    Raises:
        ConfigError: the column told is not there.
        DataError: none is known by name, or several are.
    """
    if told is not None:
        _check_exists(told, columns, "dataset.conversation_column")
        return told
    found = [name for name in _CHAT_NAMES if name in columns]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several columns of {source} may hold the conversations: {', '.join(found)}. "
            f"Choose one with dataset.conversation_column={found[0]}"
        )
    hint = ""
    if _known_formats(columns):
        hint = ". These look like prompts and answers: use instruct_dataset"
    raise DataError(
        f"no column of {source} holds conversations: found {list_names(columns)}, expected one of "
        f"{', '.join(_CHAT_NAMES)}. Name it with dataset.conversation_column=COLUMN{hint}"
    )


def find_text_column(columns: Sequence[str], told: str | None = None, source: str = "the data") -> str:
    """Return the column that holds plain text.

    Raises:
        ConfigError: the column told is not there.
        DataError: there is no column `text`, and not just a single column.
    """
    if told is not None:
        _check_exists(told, columns, "dataset.column")
        return told
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return columns[0]
    raise DataError(
        f"{source} has no column 'text': found {list_names(columns)}. Name it with dataset.column=COLUMN"
    )


def _known_formats(columns: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """Return every way to read the columns as (prompt, answer, context)."""
    found: list[tuple[str, str, str | None]] = []
    for prompt, answers, contexts in _INSTRUCTION_FORMATS:
        # With an instruction beside it, `input` is part of the prompt.
        if prompt not in columns or (prompt == "input" and "instruction" in columns):
            continue
        context = next((name for name in contexts if name in columns), None)
        found += [(prompt, answer, context) for answer in answers if answer in columns]
    return found


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
        elif part == "input":
            role = "context" if input_is_context or names_prompt else "prompt"
        else:
            raise ConfigError(
                f"dataset.column_map has no part {part!r}; parts are {', '.join(_PROMPT_NAMES)}, input, "
                f"{', '.join(_ANSWER_NAMES)}, each mapped to a column of the data ({list_names(columns)})"
            )
        if role in told:
            raise ConfigError(f"dataset.column_map names the {role} twice: {told[role]!r} and {column!r}")
        _check_exists(column, columns, f"dataset.column_map.{part}")
        told[role] = column
    if len(set(told.values())) < len(told):
        raise ConfigError(f"dataset.column_map gives one column to two parts: {dict(column_map)}")
    return told


def _complete(columns: Sequence[str], told: Mapping[str, str]) -> InstructionColumns:
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
    return InstructionColumns(chosen["prompt"], chosen["answer"], context)


def _literal_input(columns: Sequence[str], told: Mapping[str, str]) -> str | None:
    is_free = "input" in columns and "input" not in told.values()
    return "input" if is_free and told["prompt"] == "instruction" else None


def _check_exists(column: str, columns: Sequence[str], setting: str) -> None:
    if column not in columns:
        short = [name for name in columns[:_MAX_COMPARED] if len(name) <= _MAX_COMPARED_LENGTH]
        near = difflib.get_close_matches(str(column)[:_MAX_COMPARED_LENGTH], short, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{setting} is {column!r}, but the data has {list_names(columns)}{hint}")


def _not_recognised(columns: Sequence[str], input_is_context: bool, source: str) -> str:
    text = f"cannot tell which columns of {source} hold prompts and answers: found {list_names(columns)}. "
    chat = [name for name in _CHAT_NAMES if name in columns]
    if chat:
        return text + f"{chat[0]!r} looks like conversations: use chat_dataset (in a config: dataset=chat)"
    if list(columns) == ["text"]:
        return (
            text
            + "'text' alone is plain text: use text_completion_dataset (in a config: dataset=text_completion)"
        )
    if "chosen" in columns and "rejected" in columns:
        return text + "'chosen' and 'rejected' are preference pairs, which this dataset does not read"
    return text + (
        f"Say so with dataset.column_map={{{_parts(input_is_context)}}}; known without a map are "
        + ", ".join(f"{prompt}/{'|'.join(answers)}" for prompt, answers, _ in _INSTRUCTION_FORMATS)
    )


def _parts(input_is_context: bool, example: InstructionColumns | None = None) -> str:
    prompt, answer = (example.prompt, example.answer) if example else ("COLUMN", "COLUMN")
    return f"{'instruction' if input_is_context else 'input'}: {prompt}, output: {answer}"


def list_names(columns: Sequence[str], limit: int = 12) -> str:
    """Return the names of columns, fit for a message: no more than `limit`, none too long."""
    names = [escape_control(name, 60) if name.strip() else repr(name[:60]) for name in columns[:limit]]
    return (", ".join(names) + (", ..." if len(columns) > limit else "")) or "no columns"
