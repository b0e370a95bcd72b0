"""From a row of data to a conversation.

Each transform is called with a row (column name to value) and returns `{"messages": [...]}`. A row that does
not fit raises `DataError` that says what is wrong with it; datasets add the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.data.columns import list_names
from tune.data.json_text import parse
from tune.data.message_flags import read_part_weight, read_weight
from tune.data.rows import describe
from tune.errors import DataError
from tune.tokenizers.messages import Message, Role, validate_messages
from tune.tokenizers.templates import AlpacaInstructTemplate
from tune.utils.escape import escape_control

_OPENAI_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "ipython",
}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# Data names what an assistant thinks in several ways.
_THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")


class InputOutputToMessages:
    """A prompt and its answer.

    Args:
        train_on_input: learn the prompt as well.
        column_map: `input` and `output`, each to its column; `context` to a column of text that follows the
            prompt after a blank line.
        new_system_prompt: a system message for every conversation.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
    ) -> None:
        columns = {"input": "input", "output": "output", **(column_map or {})}
        self._input, self._output = columns["input"], columns["output"]
        self._context = columns.get("context")
        self._train_on_input = train_on_input
        self._system = new_system_prompt

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        prompt = _text(row, self._input)
        context = _optional_text(row, self._context)
        if context.strip():
            prompt = f"{prompt}\n\n{context}"
        if not prompt.strip():
            raise DataError(f"column {self._input!r} is empty")
        return _instruction_messages(prompt, _text(row, self._output), self._train_on_input, self._system)


class AlpacaToMessages:
    """An instruction, perhaps with an input, in the prompts of Stanford Alpaca, and its output.

    Args:
        train_on_input: learn the prompt as well.
        column_map: `instruction`, `input` and `output`, each to its column.
    """

    # https://github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
    _BEFORE_WITH_INPUT = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    )

    def __init__(self, train_on_input: bool = True, column_map: Mapping[str, str] | None = None) -> None:
        columns = {"instruction": "instruction", "input": "input", "output": "output", **(column_map or {})}
        self._instruction, self._input, self._output = (
            columns[part] for part in ("instruction", "input", "output")
        )
        self._train_on_input = train_on_input

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        instruction = _text(row, self._instruction)
        if not instruction.strip():
            raise DataError(f"column {self._instruction!r} is empty")
        context = _optional_text(row, self._input)
        before, after = AlpacaInstructTemplate().user
        if context.strip():
            prompt = f"{self._BEFORE_WITH_INPUT}{instruction}\n\n### Input:\n{context}{after}"
        else:
            prompt = f"{before}{instruction}{after}"
        return _instruction_messages(prompt, _text(row, self._output), self._train_on_input, None)


class OpenAIToMessages:
    """A list of `{"role": ..., "content": ...}`; a message with `"weight": 0` is not learnt.

    `tool_calls`, `tool_call_id`, `name` and `reasoning_content` of a message are read too, and a column `tools`.

    Args:
        train_on_input: learn the messages of user and system as well.
        column_map: `messages` to its column.
        new_system_prompt: replaces the system message of every conversation.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
    ) -> None:
        self._column = (column_map or {}).get("messages", "messages")
        self._train_on_input = train_on_input
        self._system = new_system_prompt

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        keys = ("role", "content")
        read: dict[str, list[Any]] = {}
        read |= _chat_messages(row, self._column, keys, _OPENAI_ROLES, self._train_on_input, self._system)
        tools = _tools(row)
        return read | {"tools": tools} if tools else read


class ShareGPTToMessages:
    """A list of `{"from": "human" or "gpt" or "system", "value": ...}`.

    Args:
        train_on_input: learn the messages of human and system as well.
        column_map: `conversations` to its column.
        new_system_prompt: replaces the system message of every conversation.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
    ) -> None:
        self._column = (column_map or {}).get("conversations", "conversations")
        self._train_on_input = train_on_input
        self._system = new_system_prompt

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        keys = ("from", "value")
        return _chat_messages(row, self._column, keys, _SHAREGPT_ROLES, self._train_on_input, self._system)


def _instruction_messages(
    prompt: str, answer: str, train_on_input: bool, system: str | None
) -> dict[str, list[Message]]:
    messages = [Message("system", system, masked=not train_on_input)] if system else []
    messages += [Message("user", prompt, masked=not train_on_input), Message("assistant", answer)]
    return {"messages": messages}


def _chat_messages(
    row: Mapping[str, Any],
    column: str,
    keys: tuple[str, str],
    roles: Mapping[str, Role],
    train_on_input: bool,
    system: str | None,
) -> dict[str, list[Message]]:
    turns = _value(row, column)
    if not isinstance(turns, list):
        raise DataError(f"column {column!r} is {describe(turns)}, expected a list of messages")
    messages = [Message("system", system, masked=not train_on_input)] if system else []
    for number, turn in enumerate(turns, start=1):
        where = f"message {number} in {column!r}"
        calls = turn.get("tool_calls") if isinstance(turn, Mapping) else None
        if not isinstance(turn, Mapping) or any(key not in turn for key in keys[: 1 if calls else 2]):
            raise DataError(
                f"{where} is {describe(turn)}, expected an object with {keys[0]!r} and {keys[1]!r}"
            )
        role = roles.get(turn[keys[0]]) if isinstance(turn[keys[0]], str) else None
        if role is None:
            raise DataError(
                f"{where} has the {keys[0]} {_named(turn[keys[0]])}; known are {', '.join(roles)}"
            )
        if role == "system" and system:
            continue
        said = turn.get(keys[1])
        parts = [] if said is None and calls else _content_parts(said, where)
        content = "".join(text for text, _ in parts)
        weight, spans = read_weight(turn, role == "assistant" or train_on_input, where, content, parts)
        messages.append(
            Message(
                role,
                content,
                tool_calls=_tool_calls(calls, where),
                reasoning_content=next(
                    (thought for key in _THINKING_KEYS if (thought := _label(turn, key, where))), None
                ),
                name=_label(turn, "name", where),
                tool_call_id=_label(turn, "tool_call_id", where),
                weight=weight,
                spans=spans,
            )
        )
    validate_messages(messages)
    return {"messages": messages}


def _named(role: Any) -> str:
    return repr(role[:40]) if isinstance(role, str) else describe(role)


def _label(turn: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return a further text of a message, None where it has none."""
    value = turn.get(key)
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{where} has {describe(value)} as {key}, expected text")


def _tool_calls(calls: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return the calls of a message, with arguments that are written as JSON text read."""
    if not calls:
        return ()
    if not isinstance(calls, list):
        raise DataError(f"{where} has {describe(calls)} as tool_calls, expected a list")
    read = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"{where} calls {describe(call)}, expected an object with 'function' and its 'name'"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # Columns of parquet files cannot hold objects of varying keys, and OpenAI writes text as well.
            arguments = _json(
                arguments, f"{where} calls {escape_control(function['name'], 60)} with arguments that are"
            )
        parts = {key: value for key, value in function.items() if value is not None}
        rest = {} if function is call else {key: value for key, value in call.items() if value is not None}
        read.append({"type": "function", **rest, "function": {**parts, "arguments": arguments or {}}})
    return tuple(read)


def _tools(row: Mapping[str, Any]) -> list[Any]:
    """Return the schemas of a row's tools, a list or its JSON text."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, "column 'tools' is") if tools.strip() else None
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"column 'tools' is {describe(tools)}, expected a list of objects")
    return tools


def _json(text: str, what: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise DataError(f"{what} no JSON: {describe(text)}") from error


def _content_parts(value: Any, where: str) -> list[tuple[str, float | None]]:
    """Return the texts that a content is joined of, each with its own weight."""
    if isinstance(value, str):
        return [(value, None)]
    # OpenAI also writes content as a list of parts.
    if isinstance(value, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        return [(part["text"], read_part_weight(part, where)) for part in value]
    raise DataError(f"{where} has {describe(value)} as content, expected text")


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise DataError(f"has no column {column!r} (it has {list_names(list(map(str, row)))})")
    return row[column]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _value(row, column)
    if isinstance(value, str):
        return value
    raise DataError(f"column {column!r} is {describe(value)}, expected text")


def _optional_text(row: Mapping[str, Any], column: str | None) -> str:
    """Return the text of a column, "" where the row leaves it out or has null."""
    if column is None or row.get(column) is None:
        return ""
    return _text(row, column)
