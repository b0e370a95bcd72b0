"""Where the parts of a message stand in what a template writes, and the weight each has in the loss.

Places are characters [start, end) of a text, with the weight of their tokens; where there is none, nothing is learnt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tune.errors import DataError
from tune.tokenizers.messages import Message, WeightedSpan

Span = tuple[int, int]

_THINK, _THINK_END = "<think>", "</think>"
# What a template writes around a thought: tags, and white space.
_OPENING = re.compile(r"\s*(<[\w:.-]{1,40}>|\[\w{1,40}\]|<\|\w{1,40}>\w{0,40})\s*")
_CLOSING = re.compile(r"\s*(</[\w:.-]{1,40}>|\[/\w{1,40}\]|<\w{1,40}\|>)\s*")
# Stands for the characters of a special token, of which no message's content is made.
BLANK = "\0"


def weigh_tokens(text: str, spans: Sequence[Span], places: Sequence[WeightedSpan]) -> list[float]:
    """Return the weight of each token: the greatest of the places that it reaches into.

    White space around a word in its token belongs to the word, and says nothing of the places beside it.

    Args:
        text: what the tokens stand for.
        spans: the characters of each token, in order.
        places: in order, none over another.
    """
    weights = []
    first_place = 0
    for start, end in spans:
        if (inner := text[start:end].strip()) and len(inner) < end - start:
            start = end - len(text[start:end].lstrip())
            end = start + len(inner)
        while first_place < len(places) and places[first_place][1] <= start:
            first_place += 1
        weight, place = 0.0, first_place
        while place < len(places) and places[place][0] < max(end, start + 1):
            weight = max(weight, places[place][2])
            place += 1
        weights.append(weight)
    return weights


def answer_places(message: Message, text: str, start: int = 0) -> list[WeightedSpan]:
    """Return the places of an answer.

    Args:
        message: the answer.
        text: as a template writes it, from the end of the prompt to the token that ends the turn.
        start: where `text` stands.

    Raises:
        DataError: parts of the content have weights of their own, and the template changes the content.
    """
    if message.masked:
        return []
    thought = _end_of_thought(message, text)
    spans = _place_spans(message, text, thought if message.reasoning_content else 0)
    if spans and message.spans[0][0] == 0 and not message.reasoning_content:
        spans[0] = (0, *spans[0][1:])  # what the template writes before a content goes with its beginning
    done, places = thought if message.masks_reasoning else 0, []
    for first, end, weight in [*spans, (len(text), len(text), 0.0)]:
        if first > done:
            places.append((start + done, start + first, message.weight))
        if end > max(first, done):
            places.append((start + max(first, done), start + end, weight))
        done = max(done, end)
    return [place for place in places if place[2] > 0]


def asked_places(
    messages: Sequence[Message], text: str, ends: Sequence[int | None], tokens: Mapping[int, int]
) -> list[WeightedSpan]:
    """Return the places of messages that stand between two answers, of which some are learnt and others not.

    Of a message that is learnt these are its content and the token right behind it that ends its turn.

    Args:
        messages: in the order in which they stand.
        text: what they stand in, with `BLANK` for each character of a special token.
        ends: where what the template writes of each message ends, None where that is not known.
        tokens: where special tokens that end a turn stand in `text`: their start to their end.

    Raises:
        DataError: a message is not in the text as it is.
    """
    places: list[WeightedSpan] = []
    low = 0
    for message, end in zip(messages, ends, strict=True):
        inner = message.content.strip()
        high = len(text) if end is None else end
        # What a template writes before a content, such as the role, may hold the same words.
        at = text.find(inner, low, high) if end is None else text.rfind(inner, low, high)
        if at < 0 and message.weight:
            raise DataError(
                f"the template does not write the message by the {message.role} as it is ({inner[:40]!r}), so it "
                "cannot be told from those beside it, which are learnt otherwise. Give them one weight, or use another "
                "prompt_template"
            )
        if at >= 0:
            stop = at + len(inner)
            if message.weight and inner:
                places += place_content(message, at)
                follows = next((place for place in range(stop, high) if not text[place].isspace()), high)
                if follows in tokens:
                    places.append((follows, tokens[follows], message.weight))
            low = stop
        low = low if end is None else end
    return [place for place in places if place[2] > 0]


def place_content(message: Message, at: int) -> list[WeightedSpan]:
    """Return the places of a message's content, of which white space around it is taken off, that stands at `at`."""
    lead = len(message.content) - len(message.content.lstrip())
    stop = at + len(message.content.strip())
    places: list[WeightedSpan] = []
    done = at
    for first, end, weight in [*message.spans, (len(message.content), len(message.content), 0.0)]:
        first, end = (min(max(at + place - lead, done), stop) for place in (first, end))
        places += [(done, first, message.weight), (first, end, weight)]
        done = end
    return [place for place in places if place[1] > place[0]]


def _end_of_thought(message: Message, text: str) -> int:
    """Return the number of characters that an answer begins with which are its thinking, tags included."""
    thought = (message.reasoning_content or split_thought(message.content)[0]).strip()
    opening = _OPENING.match(text)
    at = text.find(thought, opening.end() if opening else 0)
    if not thought or at < 0:
        return 0
    end = at + len(thought)
    closing = _CLOSING.match(text, end)
    return closing.end() if closing else end


def split_thought(content: str) -> tuple[str, str]:
    """Return what is thought and what is said in a content that holds both, as templates part them."""
    before, _, said = content.rpartition(_THINK_END)
    return before.partition(_THINK)[2] or before, said


def _place_spans(message: Message, text: str, low: int) -> list[WeightedSpan]:
    """Return where in an answer the spans of its content stand; the content begins at `low` at the earliest."""
    if not message.spans:
        return []
    content = message.content
    found: list[WeightedSpan] = []
    regions = _regions(content, text, low)
    for first, end, weight in message.spans:
        for start, stop, at in regions:
            if max(first, start) < min(end, stop):
                found.append((at + max(first, start) - start, at + min(end, stop) - start, weight))
    return found


def _regions(content: str, text: str, low: int) -> list[tuple[int, int, int]]:
    """Return the parts [start, end) of a content that stand in a text as they are, each with its place there."""
    for whole in (content, content.strip()):
        if (at := text.find(whole, low)) >= 0:
            start = content.find(whole)
            return [(start, start + len(whole), at)]
    regions: list[tuple[int, int, int]] = []
    for part in map(str.strip, split_thought(content)):
        start, at = content.find(part, regions[-1][1] if regions else 0), text.find(part, low)
        if at < 0:
            raise DataError(
                f"parts of a message have weights of their own, and the template writes the message otherwise than it "
                f"is: {content[:40]!r}. Use another prompt_template"
            )
        regions.append((start, start + len(part), at))
        low = at + len(part)
    return regions
