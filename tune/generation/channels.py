"""Answers in channels: what a model thinks is told from what it says by the special tokens around both.

Where a model writes its thoughts between tags that are text, such as <think>, they are part of its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tune.generation.stop_strings import StopStrings
from tune.tokenizers import StreamDecoder, Tokenizer

_Part = Literal["header", "message", "reasoning", "answer"]


@dataclass(frozen=True)
class _Form:
    """How a family's answers are written.

    Args:
        turn: the token that begins a turn; a prompt without it asks for no such answer.
        parts: what follows each of the tokens; a message is what the header before it says.
        ends_header: text that ends a header as well.
    """

    turn: str
    parts: Mapping[str, _Part]
    ends_header: str = ""


_FORMS = (
    # gpt-oss: <|start|>assistant<|channel|>analysis<|message|>...<|end|>, of each channel.
    _Form(
        "<|start|>",
        {
            "<|start|>": "header",
            "<|channel|>": "header",
            "<|message|>": "message",
            "<|end|>": "header",
        },
    ),
    # Muse-Glimmer: <|start|>assistant to=self<|message|>...<|eom|>, of each it speaks to; the last ends in <|eot|>.
    _Form(
        "<|start|>",
        {
            "<|start|>": "header",
            "<|message|>": "message",
            "<|eom|>": "header",
            "<|eot|>": "header",
        },
    ),
    # Gemma 4: <|channel>thought, a line feed, ...<channel|>, then the answer.
    _Form("<|turn>", {"<|channel>": "header", "<channel|>": "answer"}, ends_header="\n"),
)
_THOUGHTS = ("analysis", "thought")  # names of channels
_TO_ITSELF = " to=self"


def _is_of_thought(header: str) -> bool:
    name = header.strip()
    return name.startswith(_THOUGHTS) or name.endswith(_TO_ITSELF)


class AnswerReader:
    """Makes text of an answer as its tokens come.

    Args:
        tokenizer: of the model.
        prompt: ids of what is answered: they say whether the answer comes in channels, and in which one it begins.
        stop: texts that end the answer and are not part of it; what is thought does not end it.
        show_reasoning: what is thought is shown, too, between <think> tags.

    Attributes:
        answer: what was said so far.
        reasoning: what was thought.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        *,
        show_reasoning: bool = False,
    ) -> None:
        self.answer = self.reasoning = ""
        self._stops, self._decoder = StopStrings(), StreamDecoder(tokenizer)
        self._part: _Part = "answer"
        self._header = self._ends_header = ""
        self._unread = ""  # headers, while no message has come
        self._parts: dict[int, _Part] = {}
        self._shows = False
        ids = tokenizer.special_tokens
        known = [form for form in _FORMS if {form.turn, *form.parts} <= ids.keys()]
        for form in [form for form in known if ids[form.turn] in prompt]:
            self._parts = {ids[text]: part for text, part in form.parts.items()}
            self._ends_header = form.ends_header
            begin = len(prompt) - list(reversed(prompt)).index(ids[form.turn]) - 1
            for token in prompt[begin:]:
                self.push(token)
            self._take(self._decoder.finish())
        self.answer = self.reasoning = self._unread = ""
        self._stops = StopStrings(stop)
        self._shows = show_reasoning

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._stops.found

    def push(self, token: int) -> str:
        """Return what there is to show with this token."""
        if (part := self._parts.get(token)) is None:
            return self._take(self._decoder.push(token))
        shown = self._take(self._decoder.finish())
        if part == "message":
            part = "reasoning" if _is_of_thought(self._header) else "answer"
        return shown + self._enter(part)

    def finish(self) -> str:
        """Return what was held back: no more tokens come."""
        shown = self._take(self._decoder.finish())
        if self._part == "reasoning":
            shown += self._enter("header")
        if not self.answer and not self.reasoning:  # a model that has not learnt the form
            self._part = "answer"
            shown += self._take(self._unread)
        held = self._stops.finish()
        self.answer += held
        return shown + held

    def _take(self, text: str) -> str:
        if self._part == "reasoning":
            self.reasoning += text
            return text if self._shows else ""
        if self._part == "answer":
            said = self._stops.push(text)
            self.answer += said
            return said
        self._header += text
        self._unread += text
        if self._ends_header and self._ends_header in self._header:
            name, _, rest = self._header.partition(self._ends_header)
            part: _Part = "reasoning" if _is_of_thought(name) else "answer"
            return self._enter(part) + self._take(rest)
        return ""

    def _enter(self, part: _Part) -> str:
        before, self._part, self._header = self._part, part, ""
        between = "\n\n" if self.answer else ""
        shown = ""
        if before == "reasoning" and self._shows:
            shown = "\n</think>" + ("" if between else "\n\n")
        if part == "reasoning":
            self.reasoning += "\n\n" if self.reasoning else ""
            shown += f"{between}<think>\n" if self._shows else ""
        elif part == "answer" and before != "answer":
            shown += self._take(between)
        return shown
