"""What a chat template is given: messages and values as plain data that a template cannot do harm with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune.errors import DataError


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Return messages as plain mappings that a template cannot do harm with, entries that are null left out.

    Raises:
        DataError: one is no message.
    """
    plain = []
    for number, message in enumerate(messages, start=1):
        row = message.to_dict() if hasattr(message, "to_dict") else message
        if not isinstance(row, Mapping) or not isinstance(row.get("role"), str):
            raise DataError(
                f"message {number} is a {type(message).__name__} without a role, expected role and content"
            )
        kept = {
            str(key): plain_data(value, f"message {number}")
            for key, value in row.items()
            if value is not None
        }
        # Thinking has had several names, and templates read one or the other.
        names = ("reasoning_content", "thinking", "reasoning")
        thinking = next((kept[name] for name in names if name in kept), None)
        if thinking is not None:
            kept = {"thinking": thinking, **kept, "reasoning_content": thinking}
        plain.append(kept)
    return plain


def plain_data(value: Any, where: str) -> Any:
    """Return a value rebuilt of plain JSON types: other objects have methods that no sandbox knows."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain_data(key, where): plain_data(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item, where) for item in value]
    raise DataError(
        f"{where} holds a {type(value).__name__}; texts, numbers, lists and objects can be written"
    )
