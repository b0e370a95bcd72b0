"""Which columns hold conversations and what belongs to them: recognised by name, or told, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.data.columns import (
    CHAT_NAMES,
    check_exists,
    known_formats,
    known_part,
    list_names,
    other_task,
)
from tune.errors import ConfigError, DataError

_PARTS = ("messages", "answer", "system", "tools")


@dataclass(frozen=True)
class ChatColumns:
    """Names of the columns that hold messages, those that answer them, a system prompt and tools."""

    messages: str
    answer: str | None = None
    system: str | None = None
    tools: str | None = None

    def __str__(self) -> str:
        before = [name for name in (self.system, self.tools) if name]
        answer = f" -> {self.answer}" if self.answer else ""
        return f"{self.messages}{answer}{f', with {list_names(before)}' if before else ''}"

    def column_map(self) -> dict[str, str]:
        """Return each part to its column, as transforms take it."""
        parts = {"messages": self.messages, "answer": self.answer, "system": self.system, "tools": self.tools}
        return {part: column for part, column in parts.items() if column}


def find_chat_columns(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    told: str | None = None,
    column_map: Mapping[str, str] | None = None,
    source: str = "the data",
) -> ChatColumns:
    """Return which columns hold conversations and what belongs to them.

    Args:
        rows: the first ones.
        columns: names in the data.
        told: the column of the conversations.
        column_map: from a part to the column that holds it: `messages`, `answer` (the message, or messages, that follow
            these, and alone are learnt), `system`, `tools`.
        source: what errors call the data.

    Raises:
        ConfigError: a column told is not there, or a part is unknown.
        DataError: no column of conversations is known by name, or several are.
    """
    parts = dict(column_map or {})
    for part, column in parts.items():
        if part not in _PARTS:
            raise ConfigError(f"dataset.column_map has no part {part!r}; parts are {', '.join(_PARTS)}")
        check_exists(column, columns, f"dataset.column_map.{part}")
    if told is not None and "messages" in parts:
        raise ConfigError(
            "dataset.conversation_column and dataset.column_map.messages say the same; keep one"
        )
    told = told or parts.get("messages")
    answer = parts.get("answer")
    if told is None and not set(CHAT_NAMES) & set(columns):
        completion = answer or "completion"
        # TRL's conversations in two columns.
        if {"prompt", completion} <= set(columns) and any(_holds_messages(row.get("prompt")) for row in rows):
            told, answer = "prompt", completion
    system, tools = (parts.get(part) or known_part(columns, part) for part in ("system", "tools"))
    return ChatColumns(find_conversation_column(columns, told, source), answer, system, tools)


def find_conversation_column(
    columns: Sequence[str], told: str | None = None, source: str = "the data"
) -> str:
    """Return the column that holds conversations.

    Raises:
        ConfigError: the column told is not there.
        DataError: none is known by name, or several are.
    """
    if told is not None:
        check_exists(told, columns, "dataset.conversation_column")
        return told
    found = [name for name in CHAT_NAMES if name in columns]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several columns of {source} may hold the conversations: {', '.join(found)}. "
            f"Choose one with dataset.conversation_column={found[0]}"
        )
    hint = ""
    if known_formats(columns):
        hint = ". These look like prompts and answers: use instruct_dataset (in a config: dataset=instruct)"
    elif other := other_task(columns):
        hint = f". {other}"
    raise DataError(
        f"no column of {source} holds conversations: found {list_names(columns)}, expected one of "
        f"{', '.join(CHAT_NAMES)}. Name it with dataset.conversation_column=COLUMN{hint}"
    )


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)
