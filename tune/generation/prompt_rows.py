"""Prompts out of the rows that training reads: what is asked in them, without the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune.data.columns import CHAT_NAMES, known_formats, list_names
from tune.errors import DataError
from tune.tokenizers import Message
from tune.tokenizers.messages import Role

__all__ = ["Prompt", "prompt_of"]

COLUMN = "prompt"
# Columns that hold a prompt where no answer stands beside it.
_ALONE = (COLUMN, "question", "instruction", "input", "query", "text")
_CONTEXTS = ("input", "context")
_ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True)
class Prompt:
    """One prompt and what else stood beside it.

    Args:
        text: The prompt: what the user says last.
        source: The other columns of its row, to be handed on with the answer.
        before: What was said before it.
    """

    text: str
    source: Mapping[str, Any] = field(default_factory=dict)
    before: Sequence[Message] = ()


def prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    """Return what is asked in a row of any of the formats that training reads.

    A column `prompt` is the prompt; else the prompt of an instruction or a question with its answer, which is handed
    on, further text behind it after a blank line; else a conversation, up to what the user says last.

    Args:
        row: by column.
        where: it stands, for messages.

    Raises:
        DataError: There is none, or several, or it is no text.
    """
    names = {str(name).lower(): str(name) for name in row}
    chat = next(
        (names[name] for name in (COLUMN, *CHAT_NAMES) if isinstance(row.get(names.get(name, "")), list)),
        None,
    )
    if chat is not None:
        return _last_question(row, chat, where)
    formats = known_formats([str(name) for name in row])
    context = None
    if COLUMN in names:
        column = names[COLUMN]
    elif len(formats) == 1:
        column, _, context = formats[0]
    elif formats:
        ways = "; ".join(f"{prompt} -> {answer}" for prompt, answer, _ in formats)
        raise DataError(
            f"{where}: the row can be read in {len(formats)} ways ({ways}); call the prompt's column {COLUMN}."
        )
    else:
        alone = next((names[name] for name in _ALONE if name in names), None)
        if alone is None:
            raise DataError(
                f"{where}: there is no column {COLUMN!r}, nor one known to hold a prompt; it has "
                f"{list_names(list(map(str, row))) or 'none'}."
            )
        column = alone
        context = next((names[name] for name in _CONTEXTS if name in names and names[name] != column), None)
    text = row[column]
    if not isinstance(text, str):
        raise DataError(f"{where}: column {column!r} is {type(text).__name__}; it must be text.")
    used = {column}
    if context is not None and isinstance(row[context], str) and row[context].strip():
        text = f"{text}\n\n{row[context]}"
        used.add(context)
    return Prompt(text, {str(name): value for name, value in row.items() if name not in used})


def _last_question(row: Mapping[str, Any], column: str, where: str) -> Prompt:
    messages = [
        _read_message(turn, f"{where}, message {number}") for number, turn in enumerate(row[column], 1)
    ]
    while messages and messages[-1].role != "user":
        messages.pop()
    if not messages:
        raise DataError(f"{where}: the user says nothing in column {column!r}.")
    others = {str(name): value for name, value in row.items() if name != column}
    answers = row[column][len(messages) :]
    return Prompt(messages[-1].content, others | ({"answer": answers} if answers else {}), messages[:-1])


def _read_message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: expected an object with role and content, found {type(turn).__name__}.")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}: role and content must be texts; it has {list_names(list(map(str, turn)))}."
        )
    if role not in _ROLES:
        raise DataError(f"{where}: there is no role {role!r}; known are system, user, assistant and tool.")
    return Message(_ROLES[role], content)
