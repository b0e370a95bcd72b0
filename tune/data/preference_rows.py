"""Rows of preference data as conversations: two that answer one prompt, or one that is judged.

What is learnt of a conversation is what its answer adds to the prompt: in a pair, from where the two differ.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune.data.preference_columns import PreferenceColumns, read_transcript
from tune.data.rows import describe
from tune.data.tool_calls import read_tools
from tune.data.turns import TurnReader
from tune.data.values import as_text, column_text, is_empty, optional_text, unused_columns, without
from tune.errors import DataError
from tune.tokenizers.messages import Message, validate_messages

EMPTY = "pairs with an empty answer, of which no more than its end is learnt"
_LARGEST_MARGIN = 1e30  # fp32 holds it
_YES, _NO = ("true", "1", "yes", "good"), ("false", "0", "no", "bad")


class _PreferenceToMessages:
    """What transforms of pairs and of judged answers have in common.

    Args:
        columns: which hold what.
        train_on_input: learn the prompt as well.
        new_system_prompt: replaces the system message of every conversation.
        message_keys: `role` and `content`, each to its key in a message, where these are not known.
        ignore_columns: columns that are not read, and not reported as unused.
    """

    def __init__(
        self,
        columns: PreferenceColumns,
        train_on_input: bool = False,
        new_system_prompt: str | None = None,
        message_keys: Mapping[str, str] | None = None,
        ignore_columns: Iterable[str] = (),
    ) -> None:
        self._columns = columns
        self._system = new_system_prompt
        self._train_on_input = train_on_input
        self._ignored = tuple(ignore_columns)
        keys = {part: (key,) for part, key in (message_keys or {}).items()}
        reader = TurnReader(train_on_input=train_on_input)
        self._reader = replace(
            reader,
            role_keys=keys.get("role", reader.role_keys),
            content_keys=keys.get("content", reader.content_keys),
        )

    def _read_prompt(
        self, row: Mapping[str, Any], unused: Counter[str], notes: Counter[str]
    ) -> list[Message]:
        """Return the messages of the prompt, [] where the conversations hold their own."""
        column = self._columns.prompt
        if column is None or is_empty(row.get(column)):
            return []
        messages = self._messages(row[column], column, unused, notes)
        if messages is None:
            context = optional_text(row, self._columns.context, notes)
            text = column_text(row, column, notes) + (f"\n\n{context}" if context.strip() else "")
            return [Message("user", text, masked=not self._train_on_input)]
        while messages and messages[-1].role == "assistant" and not messages[-1].content.strip():
            messages.pop()  # "Assistant:" at the end asks for the answer
        return messages

    def _conversation(
        self,
        row: Mapping[str, Any],
        column: str,
        prompt: Sequence[Message],
        unused: Counter[str],
        notes: Counter[str],
    ) -> list[Message]:
        """Return the conversation that a column adds to the prompt, or holds whole."""
        if column not in row:
            raise DataError(f"has no column {column!r}")
        value = row[column]
        if value is None or (isinstance(value, list | tuple) and not value):
            value = ""
        messages = self._messages(value, column, unused, notes)
        if messages is None:
            if not prompt and self._columns.prompt in row:
                raise DataError(f"column {self._columns.prompt!r} is empty, so the answers have no prompt")
            if not prompt:
                raise DataError(
                    f"column {column!r} is a text without a prompt: name the prompt's column with "
                    "dataset.column_map.prompt=COLUMN, or give whole conversations (messages, or "
                    "'\\n\\nHuman: ... \\n\\nAssistant: ...')"
                )
            return [*prompt, Message("assistant", as_text(value, f"column {column!r}", notes))]
        if not prompt or _says(messages, len(prompt)) == _says(prompt, len(prompt)):
            return messages
        if messages[0].role not in ("user", "system"):
            return [*prompt, *messages]
        if any(_says([message], 1) == _says(prompt[-1:], 1) for message in messages):
            begins = prompt[0].role == "system" and messages[0].role != "system"
            return [*prompt[:begins], *messages]
        raise DataError(
            f"column {column!r} is a whole conversation, and column {self._columns.prompt!r} another question than any "
            f"in it. Where it is not the prompt: dataset.ignore_columns=[{self._columns.prompt}]"
        )

    def _messages(
        self, value: Any, column: str, unused: Counter[str], notes: Counter[str]
    ) -> list[Message] | None:
        """Return what a value says as messages, None for a plain text."""
        if isinstance(value, Mapping):
            # OpenAI's preference pairs have their question so.
            value = value["messages"] if isinstance(value.get("messages"), list) else [value]
        if isinstance(value, str):
            if turns := read_transcript(value):
                reader = replace(TurnReader(), train_on_input=self._train_on_input)
                return reader.read(turns, column, unused, notes)
            value = self._parse(value)
        if isinstance(value, list | tuple):
            return self._reader.read(value, column, unused, notes)
        return None

    def _parse(self, text: str) -> Any:
        """Return the messages that a JSON text holds; None for any other text, which may well look like one."""
        if not text.lstrip().startswith("["):
            return None
        try:
            turns = json.loads(text)
        except (ValueError, RecursionError):
            return None
        names = self._reader.role_keys
        are_turns = bool(turns) and all(
            isinstance(t, dict) and any(name in t for name in names) for t in turns
        )
        return turns if are_turns else None

    def _with_system(
        self, row: Mapping[str, Any], messages: list[Message], notes: Counter[str]
    ) -> list[Message]:
        system = self._system or ""
        if system:
            messages = [message for message in messages if message.role != "system"]
        elif not messages or messages[0].role != "system":
            system = optional_text(row, self._columns.system, notes)
        return [Message("system", system, masked=not self._train_on_input)] * bool(system) + messages

    def _read_pair(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chosen conversation as `messages`, the `rejected` one, and the `margin` if one is given."""
        unused, notes = Counter[str](), Counter[str]()
        columns = self._columns
        assert columns.chosen is not None
        assert columns.rejected is not None
        prompt = self._read_prompt(row, unused, notes)
        sides = [
            self._with_system(row, self._conversation(row, column, prompt, unused, notes), notes)
            for column in (columns.chosen, columns.rejected)
        ]
        num_shared = _shared(*sides)
        for column, side in zip((columns.chosen, columns.rejected), sides, strict=True):
            _check_side(column, side, num_shared)
        num_empty = sum(_is_empty(side[-1]) for side in sides)
        if num_empty == 2:
            raise DataError("both answers are empty, so there is nothing to learn")
        if num_empty:
            notes[EMPTY] += 1
        chosen, rejected = (_learn_from(side, num_shared) for side in sides)
        used = {
            columns.prompt,
            columns.context,
            columns.chosen,
            columns.rejected,
            columns.margin,
            columns.system,
        }
        pair: dict[str, Any] = {"messages": chosen, "rejected": rejected}
        if columns.margin is not None:
            pair["margin"] = _read_margin(row, columns.margin)
        return {**pair, **self._result(row, used, unused, notes)}

    def _result(
        self, row: Mapping[str, Any], used: set[str | None], unused: Counter[str], notes: Counter[str]
    ) -> dict[str, Any]:
        tools, tools_column = read_tools(row, self._columns.tools)
        unused.update(unused_columns(row, {*used, tools_column}))
        found = {"tools": tools, "unused": dict(unused), "notes": dict(notes)}
        return {name: value for name, value in found.items() if value}


class PairToMessages(_PreferenceToMessages):
    """A prompt with a better and a worse answer, as two conversations; arguments as of `_PreferenceToMessages`.

    Calling it with a row returns `messages`, the chosen one, and `rejected`, the other; and `margin`, where the columns
    have one. Up to where they part all is read alike, and nothing of it is learnt; `train_on_input` learns what is not
    said by the assistant there.
    """

    @property
    def has_margins(self) -> bool:
        """Whether each row says by how much its chosen answer is the better one."""
        return self._columns.margin is not None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the two conversations. Raises DataError where the row does not fit."""
        return self._read_pair(without(row, self._ignored))


class JudgedToMessages(_PreferenceToMessages):
    """A conversation and whether its last answer is good; a pair is two. Arguments as of `_PreferenceToMessages`.

    Calling it with a row returns `messages`, and `judged`, a list of conversations, each with True or False.
    """

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the judged conversations. Raises DataError where the row does not fit."""
        unused, notes = Counter[str](), Counter[str]()
        row = without(row, self._ignored)
        columns = self._columns
        if columns.chosen is not None:
            pair = self._read_pair(row)
            return {**pair, "judged": [(pair["messages"], True), (pair.pop("rejected"), False)]}
        prompt = self._read_prompt(row, unused, notes)
        if columns.completion is None:
            messages = prompt
        else:
            messages = self._conversation(row, columns.completion, prompt, unused, notes)
        messages = self._with_system(row, messages, notes)
        _check_side(columns.completion or columns.prompt or "", messages, len(messages) - 1)
        if _is_empty(messages[-1]):
            raise DataError("the answer is empty, so there is nothing to learn")
        assert columns.label is not None
        judged = [(_learn_from(messages, len(messages) - 1), _read_verdict(row, columns.label))]
        used = {columns.prompt, columns.context, columns.completion, columns.label, columns.system}
        return {"messages": judged[0][0], "judged": judged, **self._result(row, used, unused, notes)}


def _is_empty(answer: Message) -> bool:
    return not answer.content.strip() and not answer.tool_calls


def _says(messages: Sequence[Message], number: int) -> list[tuple[Any, ...]]:
    """Return what the first messages say, by whom."""
    return [
        (message.role, message.content.strip(), message.tool_calls, message.reasoning_content)
        for message in messages[:number]
    ]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Return how many messages two conversations begin with alike; the last answer of each is its own in any case."""
    same = [one == other for one, other in zip(_says(chosen, len(chosen)), _says(rejected, len(rejected)))]
    return min(same.index(False) if False in same else len(same), len(chosen) - 1, len(rejected) - 1)


def _check_side(column: str, messages: Sequence[Message], num_shared: int) -> None:
    try:
        validate_messages(messages)
    except DataError as error:
        raise DataError(f"column {column!r}: {error}") from error
    role = messages[num_shared].role
    if role in ("user", "system"):
        raise DataError(
            f"the conversations of a pair part at message {num_shared + 1}, which is by the {role}: they answer "
            "different prompts"
        )


def _learn_from(messages: Sequence[Message], start: int) -> list[Message]:
    """Return a conversation of which no answer before a message is learnt."""
    return [
        replace(message, masked=True) if message.role == "assistant" and index < start else message
        for index, message in enumerate(messages)
    ]


def _read_margin(row: Mapping[str, Any], column: str) -> float:
    """Return by how much the chosen answer is the better one. Raises DataError where that is no number."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_MARGIN:
        raise DataError(
            f"has {describe(value)} as {column}, expected the number by which the chosen answer is better"
        )
    return float(value)


def _read_verdict(row: Mapping[str, Any], column: str) -> bool:
    """Return whether an answer is good. Raises DataError where that is not said."""
    value = row.get(column)
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else str(int(value)) if value in (0, 1) else ""
    if text in _YES or text in _NO:
        return text in _YES
    raise DataError(f"has {describe(value)} as {column}, expected true (a good answer) or false (a bad one)")
