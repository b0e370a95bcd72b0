"""From a row of data to a conversation.

Each transform is called with a row (column name to value) and returns `{"messages": [...]}`, with `"tools"` where
there are any; `"unused"`, the names of columns and keys that say something and that it does not use, and `"notes"`,
what it did to the row, each with how often. A row that does not fit raises `DataError` that says what is wrong with
it; datasets add the place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tune.data.columns import list_names
from tune.data.other_tasks import refuse_other_task
from tune.data.rows import describe
from tune.data.tool_calls import read_json, read_tools
from tune.data.turn_order import OnOddTurns, arrange_turns, check_on_odd_turns
from tune.data.turns import CONTENT_KEYS, ROLE_KEYS, TurnReader, check_roles
from tune.data.values import as_text, column_text, is_empty, optional_text, unused_columns, without
from tune.errors import ConfigError, DataError
from tune.tokenizers.messages import Message
from tune.tokenizers.templates import AlpacaInstructTemplate

Read = dict[str, Any]


class InputOutputToMessages:
    """A prompt and its answer; a number is read as its text.

    Args:
        train_on_input: learn the prompt as well.
        column_map: `input` and `output`, each to its column; `context` to a column of text that follows the
            prompt after a blank line; `system` to that of a system prompt; `history` to that of earlier pairs of
            prompt and answer, whose answers are learnt too; `tools` to that of tools.
        new_system_prompt: a system message for every conversation.
        ignore_columns: columns that are not read, and not reported as unused.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        ignore_columns: Iterable[str] = (),
    ) -> None:
        self._columns = {"input": "input", "output": "output", **_OPTIONAL, **(column_map or {})}
        self._train_on_input = train_on_input
        self._system = new_system_prompt
        self._ignored = tuple(ignore_columns)

    def __call__(self, row: Mapping[str, Any]) -> Read:
        parts = {"prompt": self._columns["input"], **self._columns}
        return _read_instruction(
            row, parts, _after_blank_line, self._train_on_input, self._system, self._ignored
        )


class AlpacaToMessages:
    """An instruction, perhaps with an input, in the prompts of Stanford Alpaca, and its output.

    Args:
        train_on_input: learn the prompt as well.
        column_map: `instruction`, `input` and `output`, each to its column; `system` and `history` as in
            `InputOutputToMessages`.
        ignore_columns: columns that are not read, and not reported as unused.
    """

    def __init__(
        self,
        train_on_input: bool = True,
        column_map: Mapping[str, str] | None = None,
        ignore_columns: Iterable[str] = (),
    ) -> None:
        names = {"instruction": "instruction", "input": "input", "output": "output"}
        self._columns = {**names, **_OPTIONAL, **(column_map or {})}
        self._train_on_input = train_on_input
        self._ignored = tuple(ignore_columns)

    def __call__(self, row: Mapping[str, Any]) -> Read:
        columns = self._columns
        parts = {**columns, "prompt": columns["instruction"], "context": columns["input"]}
        return _read_instruction(row, parts, _alpaca_prompt, self._train_on_input, None, self._ignored)


class ChatToMessages:
    """A list of messages, such as `{"role": ..., "content": ...}` or `{"from": ..., "value": ...}`, or its JSON text.

    `tool_calls`, `tool_call_id`, `name` and `reasoning_content` of a message are read too; a message with `"weight": 0`
    is not learnt. So are the columns `system`, where the messages have none, and `tools`.

    Args:
        train_on_input: learn the messages of user, system and tools as well.
        column_map: `messages` to its column. `answer` to that of the message, or messages, that follow these; then
            only they are learnt. `system` to that of a system prompt, `tools` to that of tools.
        new_system_prompt: replaces the system message of every conversation.
        message_keys: `role` and `content`, each to its key in a message, where they are not known.
        roles: names of roles that are not known, each to one that is: `{"narrator": "user"}`.
        on_odd_turns: what to do with conversations that are not textbook, see `arrange_turns`.
        ignore_columns: columns that are not read, and not reported as unused.

    Raises:
        ConfigError: an argument is none of these.
    """

    _column = "messages"
    _role_keys: tuple[str, ...] = ROLE_KEYS
    _content_keys: tuple[str, ...] = CONTENT_KEYS

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        *,
        message_keys: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        on_odd_turns: OnOddTurns = "error",
        ignore_columns: Iterable[str] = (),
    ) -> None:
        check_on_odd_turns(on_odd_turns)
        if unknown := sorted(set(message_keys or {}) - {"role", "content"}):
            raise ConfigError(f"dataset.message_keys has no part {unknown[0]!r}; parts are role and content")
        check_roles(roles or {})
        keys = message_keys or {}
        self._reader = TurnReader(
            (keys["role"],) if "role" in keys else self._role_keys,
            (keys["content"],) if "content" in keys else self._content_keys,
            dict(roles or {}),
            train_on_input,
        )
        self._columns = {"messages": self._column, "system": "system", **(column_map or {})}
        self._system = new_system_prompt
        self._on_odd_turns = on_odd_turns
        self._ignored = tuple(ignore_columns)

    def __call__(self, row: Mapping[str, Any]) -> Read:
        unused, notes = Counter[str](), Counter[str]()
        column, answer = self._columns["messages"], self._columns.get("answer")
        row = without(row, self._ignored)
        used: set[str | None] = {column, answer}
        used.update(refuse_other_task(row, used, _LEARN_CHOSEN))
        messages = self._turns(row, column, "user", unused, notes)
        if answer is not None:
            messages = [replace(m, masked=True) if m.role == "assistant" else m for m in messages]
            messages += self._turns(row, answer, "assistant", unused, notes)
        has_system = bool(messages) and messages[0].role == "system"
        system = self._system
        if system:
            messages = [message for message in messages if message.role != "system"]
        if system or not has_system:
            used.add(self._columns["system"])
            system = system or optional_text(row, self._columns["system"], notes)
        first_number = 2 if self._system and has_system else 1
        messages, done = arrange_turns(messages, self._on_odd_turns, first_number)
        if system:
            messages = [Message("system", system, masked=not self._reader.train_on_input), *messages]
        tools, tools_column = read_tools(row, self._columns.get("tools"))
        unused.update(unused_columns(row, {*used, tools_column}))
        return _result(messages, tools, unused, notes + done)

    def _turns(
        self, row: Mapping[str, Any], column: str, role: str, unused: Counter[str], notes: Counter[str]
    ) -> list[Message]:
        if column not in row:
            raise DataError(f"has no column {column!r} (it has {list_names(list(map(str, row)))})")
        turns = row[column]
        if isinstance(turns, Mapping):
            # OpenAI's preference pairs have their question so.
            turns = turns["messages"] if isinstance(turns.get("messages"), list) else [turns]
        if "answer" in self._columns and isinstance(turns, str) and not turns.lstrip().startswith(("[", "{")):
            turns = [{self._reader.role_keys[0]: role, self._reader.content_keys[0]: turns}]
        return self._reader.read(turns, column, unused, notes)


class OpenAIToMessages(ChatToMessages):
    """A list of `{"role": ..., "content": ...}`, see `ChatToMessages`; `column_map` has `messages` to its column."""

    _role_keys = ("role",)
    _content_keys = ("content",)


class ShareGPTToMessages(ChatToMessages):
    """A list of `{"from": "human" or "gpt" or "system", "value": ...}`, see `ChatToMessages`.

    `column_map` has `conversations` to its column.
    """

    _column = "conversations"
    _role_keys = ("from",)
    _content_keys = ("value",)

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        columns = {
            ("messages" if part == "conversations" else part): c for part, c in (column_map or {}).items()
        }
        super().__init__(train_on_input, columns, new_system_prompt, **options)


_OPTIONAL = {"system": "system", "history": "history"}
_LEARN_CHOSEN = (
    "dataset.column_map.answer={chosen} (or column_map.messages={chosen}, where it holds whole conversations)"
)
# https://github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)


def _alpaca_prompt(instruction: str, context: str) -> str:
    before, after = AlpacaInstructTemplate().user
    if context.strip():
        return f"{_ALPACA_WITH_INPUT}{instruction}\n\n### Input:\n{context}{after}"
    return f"{before}{instruction}{after}"


def _after_blank_line(prompt: str, context: str) -> str:
    return f"{prompt}\n\n{context}" if context.strip() else prompt


def _read_instruction(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    write: Callable[[str, str], str],
    train_on_input: bool,
    system: str | None,
    ignored: Collection[str],
) -> Read:
    """Return the conversation of a row that holds a prompt and an answer, each in its column."""
    notes = Counter[str]()
    row = without(row, ignored)
    used: set[str | None] = {*columns.values()}
    used.update(refuse_other_task(row, used, "dataset.column_map.output={chosen}"))
    prompt, context = (
        column_text(row, columns["prompt"], notes),
        optional_text(row, columns.get("context"), notes),
    )
    if not prompt.strip():
        raise DataError(f"column {columns['prompt']!r} is empty")
    pairs = [
        *_history(row, columns["history"], notes),
        (write(prompt, context), column_text(row, columns["output"], notes)),
    ]
    system = system or optional_text(row, columns["system"], notes)
    messages = [Message("system", system, masked=not train_on_input)] if system else []
    for index, (asked, answer) in enumerate(pairs):
        asked = asked if index == len(pairs) - 1 else write(asked, "")
        messages += [Message("user", asked, masked=not train_on_input), Message("assistant", answer)]
    messages, done = arrange_turns(messages)
    tools, tools_column = read_tools(row, columns.get("tools"))
    unused = Counter(unused_columns(row, {*used, tools_column}))
    return _result(messages, tools, unused, notes + done)


def _history(row: Mapping[str, Any], column: str, notes: Counter[str]) -> list[tuple[str, str]]:
    """Return the earlier pairs of prompt and answer of a row."""
    pairs = row.get(column)
    if is_empty(pairs):
        return []
    if isinstance(pairs, str):
        pairs = read_json(pairs, f"column {column!r} is")
    if not isinstance(pairs, list | tuple) or any(
        not isinstance(p, list | tuple) or len(p) != 2 for p in pairs
    ):
        raise DataError(f"column {column!r} is {describe(pairs)}, expected a list of pairs [prompt, answer]")
    where = f"column {column!r} holds a pair with what"
    return [(as_text(asked, where, notes), as_text(answer, where, notes)) for asked, answer in pairs]


def _result(messages: list[Message], tools: list[Any], unused: Counter[str], notes: Counter[str]) -> Read:
    read: Read = {"messages": messages}
    for name, value in (("tools", tools), ("unused", dict(unused)), ("notes", dict(notes))):
        if value:
            read[name] = value
    return read
