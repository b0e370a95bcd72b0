"""Messages as data writes them: with OpenAI's keys and roles, ShareGPT's, or some of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.data.message_flags import FLAG_KEYS, read_part_weight, read_weight
from tune.data.other_tasks import MEDIA
from tune.data.rows import describe
from tune.data.tool_calls import read_calls, read_json
from tune.data.turn_order import join_messages
from tune.data.values import as_text, is_empty
from tune.errors import ConfigError, DataError
from tune.tokenizers.messages import TOOL_ROLES, Message, Role
from tune.utils.escape import escape_control

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
# Data names what an assistant thinks in several ways.
_THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
_CALL_KEYS = ("tool_calls", "function_call")
_OTHER_KEYS = ("name", "tool_call_id", *FLAG_KEYS)
# A turn whose content is a call; and text that belongs to a question.
_CALL, _CONTEXT = "call", "context"
_ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "ai", "bot", "chatbot", "model", "bing", "bard"), "assistant"
    ),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_response", "tool_result", "function_response"), "tool"
    ),
    "ipython": "ipython",
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), _CALL),
    "context": _CONTEXT,
}
_SPEAKERS: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "ipython",
    _CONTEXT: "user",
}
# Turns written as pairs: {"user": ..., "assistant": ...}; XTuner writes "input" and "output".
_PAIR_ROLES = _ROLES | {"input": "user", "output": "assistant"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("reasoning", "thinking")


def check_roles(roles: Mapping[str, str]) -> None:
    """Raise ConfigError where names of roles are told to be what there is not."""
    for name, role in roles.items():
        if role not in _ROLES:
            raise ConfigError(f"dataset.roles.{name} is {role!r}, expected user, assistant, system or tool")


@dataclass(frozen=True)
class TurnReader:
    """Reads a list of turns.

    Args:
        role_keys: names of what says who speaks; the first that a turn has counts.
        content_keys: names of what is said.
        roles: further names of roles, each to one that is known.
        train_on_input: learn the messages of user, system and tools as well.
    """

    role_keys: tuple[str, ...] = ROLE_KEYS
    content_keys: tuple[str, ...] = CONTENT_KEYS
    roles: Mapping[str, str] = field(default_factory=dict)
    train_on_input: bool = False

    def read(self, turns: Any, column: str, unused: Counter[str], notes: Counter[str]) -> list[Message]:
        """Return the messages of a column.

        Args:
            turns: a list of objects, or its JSON text.
            column: what errors call them.
            unused: keys that nothing uses are counted here.
            notes: so is what was done to values.

        Raises:
            DataError: a turn cannot be read; says which.
        """
        if isinstance(turns, str):
            turns = read_json(turns, f"column {column!r} is no list of messages, and its text is")
        if not isinstance(turns, list | tuple):
            raise DataError(f"column {column!r} is {describe(turns)}, expected a list of messages")
        messages: list[Message] = []
        is_context = False
        for number, turn in enumerate(turns, start=1):
            where = f"message {number} in {column!r}"
            for role, values in self._single_turns(turn, where):
                message = self._message(role, values, where, unused, notes)
                if message is None:
                    continue
                was_context, is_context = is_context, role == _CONTEXT
                if messages and messages[-1].role == message.role == "user" and (is_context or was_context):
                    is_context = is_context and was_context
                    messages[-1] = join_messages(messages[-1], message)
                else:
                    messages.append(message)
        return messages

    def _single_turns(self, turn: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the role and the values of a turn; of each in it where it is a pair of question and answer."""
        if not isinstance(turn, Mapping):
            raise DataError(self._not_a_turn(turn, where))
        key = next((name for name in self.role_keys if turn.get(name) is not None), None)
        if key is not None:
            values = dict(turn)
            return [(self._role(values.pop(key), key, where), values)]
        said = {str(name): value for name, value in turn.items() if not is_empty(value)}
        pair = {name: _PAIR_ROLES[name.lower()] for name in said if name.lower() in _PAIR_ROLES}
        if not pair or len(pair) < len(said) or len(self.role_keys) == 1:
            raise DataError(self._not_a_turn(turn, where))
        order = ("system", "user", "assistant")
        if len(set(pair.values())) < len(pair) or not set(pair.values()) <= set(order):
            raise DataError(self._not_a_turn(turn, where))
        by_role = {role: said[name] for name, role in pair.items()}
        return [(role, {self.content_keys[0]: by_role[role]}) for role in order if role in by_role]

    def _not_a_turn(self, turn: Any, where: str) -> str:
        names = f"{self.role_keys[0]!r} and {self.content_keys[0]!r}"
        return (
            f"{where} is {describe(turn)}, expected an object with {names}. Other names are told with "
            "dataset.message_keys.role=KEY dataset.message_keys.content=KEY"
        )

    def _role(self, name: Any, key: str, where: str) -> str:
        told = self.roles.get(name) if isinstance(name, str) else None
        role = _ROLES.get((told or name).strip().lower()) if isinstance(name, str) else None
        if role is None:
            shown = repr(name[:40]) if isinstance(name, str) else describe(name)
            raise DataError(
                f"{where} has the {key} {shown}; known are {', '.join(_ROLES)}. Say what it is with "
                f"dataset.roles.{escape_control(name, 40)}=user (or assistant, system, tool)"
            )
        return role

    def _message(
        self, role: str, turn: dict[str, Any], where: str, unused: Counter[str], notes: Counter[str]
    ) -> Message | None:
        key = next((name for name in self.content_keys if turn.get(name) is not None), None)
        if len(turn) == 1 and key is not None and isinstance(turn[key], str) and role in _SPEAKERS:
            # Most messages of most data are no more than this.
            return Message(_SPEAKERS[role], turn[key], masked=role != "assistant" and not self.train_on_input)
        said = _Content()
        if role == _CALL:
            said.calls += read_calls(turn.get(key or ""), where)
            if not said.calls:
                raise DataError(
                    f"{where} is the call of a tool and says none: {describe(turn.get(key or ''))}"
                )
        elif key is not None:
            said.add(turn[key], where, notes, is_result=role in TOOL_ROLES)
        calls = next((name for name in _CALL_KEYS if not is_empty(turn.get(name))), None)
        said.calls += read_calls(turn.get(calls or ""), where)
        thinking = next((name for name in _THINKING_KEYS if not is_empty(turn.get(name))), None)
        if thinking is not None:
            said.thoughts.append(_thought(turn[thinking], where, thinking))
        used = (key, calls, thinking, *_OTHER_KEYS)
        others = [name for name in turn if name not in used and not is_empty(turn[name])]
        if key is None and role == "system":
            return None
        if key is None and (role in ("user", _CONTEXT) or (others and not said.calls and not said.thoughts)):
            if any(name in turn for name in self.content_keys):
                raise DataError(f"{where} has null as content, expected text")
            raise DataError(self._not_a_turn({self.role_keys[0]: role, **turn}, where))
        if media := next((name for name in others if name in MEDIA), None):
            raise DataError(
                f"{where} has {describe(turn[media])} as {media}, and only text is read. {_NO_PICTURES}"
            )
        unused.update(f"message key {escape_control(name, 60)}" for name in others)
        final = "assistant" if role == _CALL else _SPEAKERS[role]
        content = "".join(text for text, _ in said.parts)
        weight, spans = read_weight(
            turn, final == "assistant" or self.train_on_input, where, content, said.parts
        )
        return Message(
            final,
            content,
            tool_calls=said.calls,
            reasoning_content="\n\n".join(said.thoughts) or None,
            name=_label(turn, "name", where),
            tool_call_id=_label(turn, "tool_call_id", where),
            weight=weight,
            spans=spans,
        )


@dataclass
class _Content:
    """What is said in a message: texts, each with its own weight, thoughts before them, and calls of tools."""

    parts: list[tuple[str, float | None]] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: tuple[dict[str, Any], ...] = ()

    def add(self, value: Any, where: str, notes: Counter[str], is_result: bool = False) -> None:
        """Take a text, or a list of parts."""
        if isinstance(value, list | tuple) and all(isinstance(part, Mapping | str) for part in value):
            for part in value:
                self._add_part(part, where)
        elif is_result and isinstance(value, Mapping | list | tuple):
            # What a tool gives back is data; the model reads its text.
            self.parts.append((json.dumps(value, ensure_ascii=False), None))
        elif isinstance(value, Mapping) and "type" in value:
            self._add_part(value, where)
        else:
            self.parts.append((as_text(value, f"{where} has content that", notes), None))

    def _add_part(self, part: Mapping[str, Any] | str, where: str) -> None:
        if isinstance(part, str):
            self.parts.append((part, None))
            return
        kind, weight = part.get("type", "text"), read_part_weight(part, where)
        kind = kind if isinstance(kind, str) else describe(kind)
        value = next(
            (part[name] for name in (kind, "text", "value", "content") if part.get(name) is not None), None
        )
        if kind in _TEXT_PARTS and isinstance(value, str):
            self.parts.append((value, weight))
        elif weight not in (None, 1):
            raise DataError(
                f"{where} has a part of type {escape_control(kind, 40)!r} with weight {weight:g}; only texts have one"
            )
        elif kind in _THINKING_PARTS:
            self.thoughts.append(_thought(value, where, "thinking"))
        elif kind == "tool_call":
            self.calls += read_calls(value, where)
        elif kind == "tool_use":  # Anthropic's
            call = {"name": part.get("name"), "arguments": part.get("input")}
            self.calls += read_calls({"id": part.get("id"), "function": call}, where)
        else:
            what = (
                f"a part of type {escape_control(kind, 40)!r}" if kind not in _TEXT_PARTS else describe(part)
            )
            raise DataError(f"{where} has content with {what}; only text is read. {_NO_PICTURES}")


_NO_PICTURES = "Leave such rows out with dataset.on_bad_rows=drop"


def _thought(value: Any, where: str, key: str) -> str:
    """Return a text, or the texts of a list of them or of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        parts = [part.get("text", part.get("value")) if isinstance(part, Mapping) else part for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    raise DataError(f"{where} has {describe(value)} as {key}, expected text")


def _label(turn: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return a further text of a message, None where it has none."""
    value = turn.get(key)
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{where} has {describe(value)} as {key}, expected text")
