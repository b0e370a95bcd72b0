"""Conversations: a list of messages, each by the system, the user, the assistant, or a tool it called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tune.errors import DataError

# "ipython" is what Llama 3 calls a tool.
Role = Literal["system", "user", "assistant", "tool", "ipython"]
# Those that every prompt template knows.
ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "ipython")
# More would be a slip: one token would outweigh all others of a batch.
MAX_WEIGHT = 1000


# Characters [start, end), and the weight of their tokens in the loss.
WeightedSpan = tuple[int, int, float]


def is_weight(value: object) -> bool:
    """Return whether a value is a number that a loss may be multiplied by."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: what is said, without any template around it.
        masked: True where the model shall read the turn but not learn to write it.
        tool_calls: what the assistant calls, as OpenAI writes it: `{"type": "function", "function": {"name": ...,
            "arguments": {...}}}`. Only chat templates can write it.
        reasoning_content: what the assistant thinks before it answers. Only chat templates can write it.
        name: of the tool whose result this is.
        tool_call_id: of the call whose result this is.
        weight: what the loss of its tokens is multiplied by; 0 is what `masked` says.
        spans: parts of the content that have a weight of their own, as (start, end, weight), in characters and in
            order. Of a message before an answer that has some, only the content is learnt and the token that ends it.
        masks_reasoning: the model shall read what is thought before the answer, but not learn to write it.

    Raises:
        DataError: a weight is no number from 0 to 1000, or spans are out of order.
    """

    role: Role
    content: str
    masked: bool = False
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    weight: float = 1.0
    spans: tuple[WeightedSpan, ...] = ()
    masks_reasoning: bool = False

    def __post_init__(self) -> None:
        for weight in (self.weight, *(span[2] for span in self.spans)):
            if not is_weight(weight):
                raise DataError(
                    f"a message has the weight {weight!r:.60}, expected a number from 0 to {MAX_WEIGHT}"
                )
        borders = [border for span in self.spans for border in span[:2]]
        if borders and (borders != sorted(borders) or borders[0] < 0 or borders[-1] > len(self.content)):
            raise DataError(f"a message has spans out of order or beyond its content: {self.spans!r:.100}")
        # Each says the other, so that it is enough to look at one.
        object.__setattr__(self, "weight", 0.0 if self.masked else float(self.weight))
        object.__setattr__(self, "masked", self.weight == 0)
        object.__setattr__(self, "spans", () if self.masked else tuple(self.spans))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Message:
        """Return the message that `to_dict` wrote, or that torchtune's users write: content may be a list of texts.

        Raises:
            DataError: role or content is missing, or the message has something that cannot be kept.
        """
        if missing := [key for key in ("role", "content") if key not in row]:
            raise DataError(f"a message has no {missing[0]}: {dict(row)!r:.200}")
        # Where a turn ends, the template knows; only what it would not do by itself is worth a word.
        if row.get("ipython") or (row.get("eot") is False and row["role"] not in TOOL_ROLES):
            raise DataError(
                "ipython and eot: false mark calls of tools; give those as tool_calls, as OpenAI does"
            )
        kept = {key: value for key, value in row.items() if key not in ("content", "ipython", "eot")}
        if unknown := [key for key in kept if key not in cls.__dataclass_fields__]:
            raise DataError(f"a message has no field {unknown[0]!r}")
        content = row["content"]
        if not isinstance(content, str):
            if others := [part.get("type") for part in content if part.get("type") != "text"]:
                raise DataError(f"a message's content has a part of type {others[0]!r}; only texts are read")
            content = "".join(part["content"] for part in content)
        if "tool_calls" in kept:
            kept["tool_calls"] = tuple(kept["tool_calls"])
        return cls(content=content, **kept)

    @property
    def text_content(self) -> str:
        """The content, under torchtune's name: it is text in any case."""
        return self.content

    def to_dict(self) -> dict[str, Any]:
        """Return the message as chat templates read it, without what is not set."""
        row: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            row["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            row["tool_calls"] = list(self.tool_calls)
        for key, value in (("name", self.name), ("tool_call_id", self.tool_call_id)):
            if value is not None:
                row[key] = value
        return row


def validate_messages(messages: Sequence[Message]) -> None:
    """Check that a conversation can be learnt from.

    Raises:
        DataError: it is not an optional system message, then user and assistant in turn, an assistant last.
            Results of tools follow an assistant, and a user or the assistant speaks after them.
    """
    roles = [message.role for message in messages]
    if not roles:
        raise DataError("the conversation is empty")
    for number, (before, role) in enumerate(zip(["", *roles], roles), start=1):
        if may_follow(role, before):
            continue
        if role == "system":
            raise DataError(f"message {number} is by the system, which may only speak first")
        expected = "assistant" if before == "user" else "user"
        raise DataError(
            f"message {number} is by the {role} where the {expected} should speak "
            f"(the order is {', '.join(roles[:8])}{', ...' if len(roles) > 8 else ''})"
        )
    if roles[-1] != "assistant":
        raise DataError("the conversation ends without an answer by the assistant, so nothing can be learnt")


def may_follow(role: str, before: str) -> bool:
    """Return whether a message by `role` may follow one by `before`, "" for none."""
    if role == "system":
        return before == ""
    if role == "user":
        return before != "user"
    if role == "assistant":
        return before == "user" or before in TOOL_ROLES
    return before == "assistant" or before in TOOL_ROLES
