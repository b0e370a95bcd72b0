"""Who speaks after whom: conversations that are not textbook, joined or cut as a dataset says, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from tune.errors import ConfigError, DataError
from tune.tokenizers.messages import TOOL_ROLES, Message, WeightedSpan, may_follow

OnOddTurns = Literal["error", "merge", "trim"]
_JOINT = "\n\n"


def check_on_odd_turns(choice: str) -> None:
    """Raise ConfigError where a choice is none."""
    if choice not in get_args(OnOddTurns):
        raise ConfigError(f"dataset.on_odd_turns is {choice!r}, expected 'error', 'merge' or 'trim'")


def arrange_turns(
    messages: Sequence[Message], on_odd_turns: OnOddTurns = "error", first_number: int = 1
) -> tuple[list[Message], Counter[str]]:
    """Return the messages to learn from, and what was done to get them: in words, with how many turns.

    Textbook is: perhaps a system message; a user; an assistant, perhaps with results of tools and further answers;
    a user again. A user may speak right after the result of a tool. What follows the last answer is left out in any
    case, for nobody answers it. An empty answer is read, not learnt.

    Args:
        messages: as the data has them.
        on_odd_turns: "error" refuses what is not textbook. "merge" joins turns of one role, with a blank line between
            them, a system message in the middle with its neighbours of the user, and leaves out answers that nobody
            asked for at the start. "trim" leaves out what comes before the first question that is answered, and
            everything from the first turn on that is not textbook.
        first_number: what errors call the first message.

    Raises:
        DataError: there is no answer; or the order is not textbook, and shall be.
    """
    if not messages:
        raise DataError("the conversation is empty")
    kept, done = list(messages), Counter[str]()
    if on_odd_turns == "merge":
        kept = _merge(kept)
        done["turns joined with the one before (on_odd_turns: merge)"] = len(messages) - len(kept)
    if on_odd_turns != "error":
        num_before = len(kept)
        kept = _trim(kept)
        done[f"turns left out, for they are out of order (on_odd_turns: {on_odd_turns})"] = num_before - len(
            kept
        )
    answered = len(kept)
    while answered and kept[answered - 1].role != "assistant":
        answered -= 1
    if not answered:
        raise DataError("the conversation ends without an answer by the assistant, so nothing can be learnt")
    done["turns left out at the end of conversations, for no answer follows them"] = len(kept) - answered
    del kept[answered:]
    odd = _find_odd(kept)
    if odd is not None:
        raise DataError(_explain(kept, odd, odd + first_number))
    for index, message in enumerate(kept):
        if message.role == "assistant" and not _says_something(message):
            done["empty answers, which are read and not learnt"] += 1
            kept[index] = replace(message, masked=True)
    return kept, +done


def _find_odd(messages: Sequence[Message]) -> int | None:
    """Return the index of the first message that is not textbook, None where all are."""
    before = ""
    for index, message in enumerate(messages):
        if not may_follow(message.role, before):
            return index
        before = message.role
    return None


def _explain(messages: Sequence[Message], odd: int, number: int) -> str:
    role, before = messages[odd].role, messages[odd - 1].role if odd else "system"
    merge = "leaves it out"
    if role == "system":
        what = "is by the system, which may only speak first"
        merge = "joins it with the user's turn beside it"
    elif role == before:
        what = f"is by the {role}, as is message {number - 1}"
        merge = f"joins the two with a blank line between them{' (calls of tools as one list)' * (role == 'assistant')}"
    elif role == "assistant":
        what = "is by the assistant, and nobody has asked yet"
    else:
        what = "is the result of a tool that nobody called"
    order = ", ".join(message.role for message in messages[:8])
    place = f"{'at' if role == 'user' else 'after'} message {number}"
    trim = f"keeps what is before message {number}" if _has_answer(messages[:odd]) else f"starts {place}"
    return (
        f"message {number} {what} (the order is {order}{', ...' if len(messages) > 8 else ''}). "
        f"dataset.on_odd_turns=merge {merge}; trim {trim}"
    )


def _merge(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else None
        if message.role == "system" and before is not None and before.role != "system":
            # In the middle only a user's turn can say it.
            message = replace(message, role="user")
        if before is not None and message.role == before.role and message.role not in TOOL_ROLES:
            merged[-1] = join_messages(before, message)
        else:
            merged.append(message)
    return merged


def join_messages(first: Message, second: Message) -> Message:
    """Return two messages of one role as one, with a blank line between them; each keeps its weight.

    Raises:
        DataError: they call tools, or think, and have different weights.
    """
    if not _says_something(first) or not _says_something(second):
        return second if not _says_something(first) else first
    parts = [message for message in (first, second) if message.content.strip()]
    content = _JOINT.join(message.content for message in parts)
    spans: tuple[WeightedSpan, ...] = ()
    if first.weight != second.weight or first.spans or second.spans:
        if any(message.tool_calls or message.reasoning_content for message in (first, second)):
            raise DataError(
                f"two messages in a row are by the {first.role}, and cannot be joined: they differ in weight, and have "
                "calls of tools or thoughts. dataset.on_odd_turns=trim keeps what is before"
            )
        start = len(first.content) + len(_JOINT)
        moved = [(begin + start, end + start, weight) for begin, end, weight in _spans(second)]
        spans = (*_spans(first), *moved)
    thoughts = [text for text in (first.reasoning_content, second.reasoning_content) if text]
    return replace(
        first,
        content=content,
        masked=first.masked and second.masked,
        weight=max(first.weight, second.weight),
        spans=spans,
        tool_calls=(*first.tool_calls, *second.tool_calls),
        reasoning_content=_JOINT.join(thoughts) or None,
    )


def _spans(message: Message) -> tuple[WeightedSpan, ...]:
    return message.spans or ((0, len(message.content), message.weight),)


def _trim(messages: Sequence[Message]) -> list[Message]:
    """Return the first run of textbook turns that has an answer, with the system's message at the start."""
    head = [message for message in messages[:1] if message.role == "system"]
    start = len(head)
    while start < len(messages):
        odd = _find_odd(messages[start:])
        is_odd_first = odd == 0 or messages[start].role != "user"
        run = messages[start:] if odd is None else messages[start : start + odd]
        if not is_odd_first and _has_answer(run):
            return [*head, *run]
        start += 1
    return head


def _has_answer(messages: Sequence[Message]) -> bool:
    return any(message.role == "assistant" for message in messages)


def _says_something(message: Message) -> bool:
    return bool(message.content.strip() or message.tool_calls or (message.reasoning_content or "").strip())
