"""Conversations: a list of messages, each by the system, the user or the assistant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tune.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: what is said, without any template around it.
        masked: True where the model shall read the turn but not learn to write it.
    """

    role: Role
    content: str
    masked: bool = False


def validate_messages(messages: Sequence[Message]) -> None:
    """Checks that a conversation can be learnt from.

    Raises:
        DataError: it is not an optional system message, then user and assistant in turn, an assistant last.
    """
    roles = [message.role for message in messages]
    if not roles:
        raise DataError("the conversation is empty")
    for index, role in enumerate(roles):
        if role == "system" and index > 0:
            raise DataError(f"message {index + 1} is by the system, which may only speak first")
    turns = roles[1:] if roles[0] == "system" else roles
    first = len(roles) - len(turns) + 1
    for offset, role in enumerate(turns):
        expected = "user" if offset % 2 == 0 else "assistant"
        if role != expected:
            raise DataError(
                f"message {first + offset} is by the {role} where the {expected} should speak "
                f"(the order is {', '.join(roles[:8])}{', ...' if len(roles) > 8 else ''})"
            )
    if roles[-1] != "assistant":
        raise DataError("the conversation ends without an answer by the assistant, so nothing can be learnt")
