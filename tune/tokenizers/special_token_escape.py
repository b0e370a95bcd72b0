"""Telling a template's own special tokens from those that somebody wrote into a message.

Before rendering, a mark that occurs nowhere else is put in front of everything in the data that reads like a special
token, and another one, a seam, where text could complete one with what the template puts beside it. In the rendered
text a special token counts only where no mark stands in front of it and no seam within.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from tune.errors import DataError
from tune.tokenizers.chat_template_render import ChatTemplate

if TYPE_CHECKING:
    from tune.tokenizers.chat_template_prefixes import Beginnings, Cut

# Private use characters, of which two are taken that the data does not hold.
_MARKS = tuple(map(chr, range(0xE000, 0xF8FF)))
# Keys of values that templates compare and build tokens of.
_COMPARED_KEYS = ("role", "type")


@dataclass(frozen=True)
class Marks:
    """Two characters that nothing else holds.

    Args:
        mark: what starts right after it is no special token.
        seam: what it stands within is none either.
    """

    mark: str
    seam: str

    def taken_from(self, text: str) -> str:
        """Return a text without them."""
        return text.replace(self.mark, "").replace(self.seam, "")

    def count(self, text: str) -> int:
        """Return how many of them a text holds."""
        return text.count(self.mark) + text.count(self.seam)


class SpecialTokenEscaper:
    """Marks data, and splits what is rendered from it, for one set of special tokens.

    Args:
        special_tokens: text to id.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self.ids = {text: token_id for text, token_id in special_tokens.items() if text}
        # Of two tokens that start alike the longer one is meant.
        any_token = "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)"
        self._start = re.compile(f"(?={any_token})")
        self._token = re.compile(any_token)
        self._heads = {text[:length] for text in self.ids for length in range(1, len(text))}
        self._tails = {text[-length:] for text in self.ids for length in range(1, len(text))}
        self.longest = max(map(len, self.ids), default=0)
        self._firsts = "".join({text[0] for text in self.ids})
        self._lasts = "".join({text[-1] for text in self.ids})

    def mark(self, value: Any, marks: Marks) -> Any:
        """Return data with marks in all of its texts that need one."""
        if isinstance(value, str):
            return self._mark_text(value, marks)
        if isinstance(value, dict):
            return {
                self.mark(key, marks): item if self._is_compared(key, item) else self.mark(item, marks)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.mark(item, marks) for item in value]
        return value

    def split(self, text: str, marks: Marks) -> list[str | int]:
        """Return marked text as pieces: texts without marks, and the ids of special tokens."""
        return self.split_with_places(text, marks)[0]

    def split_with_places(self, text: str, marks: Marks) -> tuple[list[str | int], list[tuple[int, int]]]:
        """Return the pieces of `split`, and where the special tokens stand in the marked text."""
        pieces: list[str | int] = []
        places: list[tuple[int, int]] = []
        end = 0
        for found in self.tokens(text, marks):
            if found.start() > end:
                pieces.append(marks.taken_from(text[end : found.start()]))
            pieces.append(self.ids[found.group()])
            places.append(found.span())
            end = found.end()
        if end < len(text):
            pieces.append(marks.taken_from(text[end:]))
        return [piece for piece in pieces if piece != ""], places

    def tokens(self, text: str, marks: Marks) -> Iterator[re.Match[str]]:
        """Yield the special tokens in marked text."""
        position = 0
        while found := self._token.search(text, position):
            if found.start() and text.startswith(marks.mark, found.start() - 1):
                position = found.start() + 1
                continue
            yield found
            position = found.end()

    def check_roles(self, messages: list[dict[str, Any]]) -> None:
        """Raise DataError where a role, which templates make tokens of, is one itself."""
        for number, message in enumerate(messages, start=1):
            if self._token.search(message["role"]):
                raise DataError(
                    f"message {number} has the role {message['role'][:40]!r}, which holds a special token"
                )

    def _is_compared(self, key: Any, item: Any) -> bool:
        """Return whether a value is a word that templates compare, which a seam would spoil."""
        return key in _COMPARED_KEYS and isinstance(item, str) and not self._token.search(item)

    def _mark_text(self, text: str, marks: Marks) -> str:
        # Most texts hold none of the characters that special tokens begin and end with.
        marked = self._start.sub(marks.mark, text) if _holds_any(text, self._firsts) else text
        inner = text.strip()
        if _holds_any(inner[: self.longest], self._lasts) and any(
            inner[:length] in self._tails for length in range(1, self.longest)
        ):
            start = len(marked) - len(marked.lstrip())
            marked = marked[:start] + marks.seam + marked[start:]
        if _holds_any(inner[-self.longest :], self._firsts) and any(
            inner[-length:] in self._heads for length in range(1, self.longest)
        ):
            end = len(marked.rstrip())
            marked = marked[:end] + marks.seam + marked[end:]
        return marked


def _holds_any(text: str, characters: str) -> bool:
    return any(character in text for character in characters)


@lru_cache(maxsize=16)
def _escaper_for(special_tokens: tuple[tuple[str, int], ...]) -> SpecialTokenEscaper:
    return SpecialTokenEscaper(dict(special_tokens))


def escaper_for(special_tokens: Mapping[str, int]) -> SpecialTokenEscaper:
    """Return the escaper of a tokenizer's special tokens."""
    return _escaper_for(tuple(special_tokens.items()))


class Conversation:
    """A conversation that is rendered up to one message or another, marked throughout.

    Args:
        template: writes it.
        escaper: of the tokenizer.
        messages: plain mappings.
        tools: schemas, or None.
        variables: what the template reads, as its user gave it.
        names: the tokenizer's `special_token_names`.
        parse_special: special tokens written out in messages are meant as such.
    """

    def __init__(
        self,
        template: ChatTemplate,
        escaper: SpecialTokenEscaper,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        variables: Mapping[str, Any],
        names: Mapping[str, str],
        parse_special: bool = False,
    ) -> None:
        escaper.check_roles(messages)
        self.template = template
        self.escaper = escaper
        self.messages = messages
        plain = (messages, tools, dict(variables))
        self.marks = _unused_marks([*plain, template.source])
        marked = plain if parse_special else tuple(escaper.mark(part, self.marks) for part in plain)
        self.names = names
        self._plain = _Renderer(template, names, *plain)
        self._marked = _Renderer(template, names, *marked) if marked != plain else None

    def want(self, cuts: Sequence[Cut]) -> None:
        """Say which beginnings will be asked for, so that the first call renders them all.

        Args:
            cuts: for each its number of messages, and whether the assistant's next answer is asked for.
        """
        for renderer in filter(None, (self._plain, self._marked)):
            renderer.wanted = list(cuts)

    def render(self, num_messages: int, add_generation_prompt: bool = False) -> str:
        """Return the first messages as marked text.

        Raises:
            DataError: the template refuses them, or looks into what special tokens in the data mean.
        """
        text = self._plain.text((num_messages, add_generation_prompt))
        if self._marked is None:
            return text
        marked = self._marked.text((num_messages, add_generation_prompt))
        if self.without_marks(marked) != text:
            raise DataError(
                f"{self.template} writes a conversation otherwise where special tokens stand in a message, so they "
                "cannot be told from its own; take them out of the data"
            )
        return marked

    def mark(self, text: str) -> str:
        """Return a part of a message with the marks it needs in a text of several."""
        return str(self.escaper.mark(text, self.marks))

    def without_marks(self, text: str) -> str:
        """Return marked text as the template alone would have written it."""
        return self.marks.taken_from(text)

    def length(self, text: str) -> int:
        """Return the characters of marked text without its marks."""
        return len(text) - self.marks.count(text)

    def split(self, text: str) -> list[str | int]:
        """Return marked text as texts and ids of special tokens."""
        return self.escaper.split(text, self.marks)

    def split_with_places(self, text: str) -> tuple[list[str | int], list[tuple[int, int]]]:
        """Return marked text as texts and ids of special tokens, and where these stand in it."""
        return self.escaper.split_with_places(text, self.marks)

    @property
    def has_marks(self) -> bool:
        """Whether anything in the data had to be marked."""
        return self._marked is not None

    def tokens(self, text: str) -> list[re.Match[str]]:
        """Return the template's own special tokens in marked text."""
        return list(self.escaper.tokens(text, self.marks))


class _Renderer:
    """Renders beginnings of a conversation, those that are wanted with the first."""

    def __init__(
        self,
        template: ChatTemplate,
        names: Mapping[str, str],
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        variables: Mapping[str, Any],
    ) -> None:
        self._template = template
        self._given = (messages, tools, {**names, **variables})
        self._known: Beginnings | None = None
        self._texts: dict[Cut, str | DataError] = {}
        self.wanted: list[Cut] = []

    def text(self, cut: Cut) -> str:
        """Return the text of a beginning. Raises DataError where the template refuses it."""
        found = self._find(cut)
        if found is None:
            messages, tools, variables = self._given
            more = [other for other in self.wanted if other != cut and self._find(other) is None]
            known, texts = self._template.render_beginnings(messages, [cut, *more], tools, variables)
            self._known = self._known or known
            self._texts |= texts
            found = self._find(cut)
        if isinstance(found, DataError):
            raise found
        assert found is not None  # the first one asked for is always answered
        return found

    def _find(self, cut: Cut) -> str | DataError | None:
        if cut in self._texts:
            return self._texts[cut]
        return self._known.text(cut) if self._known else None


def _unused_marks(data: Any) -> Marks:
    texts = list(_texts(data))
    free = (mark for mark in _MARKS if not any(mark in text for text in texts))
    marks = list(islice(free, 2))
    if len(marks) < 2:
        raise DataError(
            "the conversation holds every private use character of Unicode; none is left to mark it with"
        )
    return Marks(*marks)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
