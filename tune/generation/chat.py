"""A conversation with a model: what was said, how it is written, and what is left out where it grows too long."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune.errors import GenerationError
from tune.generation.channels import AnswerReader
from tune.generation.sampling import Sampling
from tune.generation.session import Session
from tune.generation.stop_strings import StopStrings
from tune.modules import TransformerDecoder
from tune.tokenizers import Message, Tokenizer
from tune.tokenizers.chat_template import apply_chat_template, stop_ids_of, template_for
from tune.tokenizers.templates import AnyTemplate, PromptTemplate, check_variables

__all__ = ["Chat"]


class Chat:
    """Asks a model, and remembers what was said.

    Args:
        model: in eval mode; the conversation's until `close`.
        tokenizer: the model's.
        template: writes the conversation; None goes on from the bare texts.
        system: what the system says first; "" leaves that to the template.
        variables: further names that the template reads.
        sampling: how answers are chosen.
        max_new_tokens: of an answer.
        seed: of the first answer; each further one draws from another.
        stop: texts that end an answer.
        show_reasoning: what is thought in a channel of its own is shown, too, between <think> tags.

    Attributes:
        messages: said so far, without the system's. What was thought is kept, and not read again.
        num_left_out: of the oldest messages, in the last answer, for want of room.

    Raises:
        ConfigError: the template reads no such variable.
        TokenizerError: the template does not fit the tokenizer.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        tokenizer: Tokenizer,
        template: AnyTemplate | None,
        *,
        system: str = "",
        variables: Mapping[str, Any] | None = None,
        sampling: Sampling,
        max_new_tokens: int,
        seed: int,
        stop: Sequence[str] = (),
        show_reasoning: bool = False,
    ) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.num_left_out = 0
        self._tokenizer = tokenizer
        self._template = None if template is None else template_for(template, tokenizer)
        self._variables = dict(variables or {})
        self._sampling, self._max_new_tokens, self._seed = sampling, max_new_tokens, seed
        self._stop, self._stop_ids, self._show_reasoning = list(stop), tokenizer.stop_ids, show_reasoning
        if self._template is not None:
            check_variables(self._template, self._variables, "chat_template_kwargs")
            self._stop_ids = stop_ids_of(tokenizer, self._template)
            if isinstance(self._template, PromptTemplate) and (end := self._template.assistant[1].strip()):
                self._stop.append(end)
        StopStrings(self._stop)  # an empty one is said now
        self._session = Session(model)
        self._longest = model.config.max_seq_len

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece. Left before its end, what has been said of it stays.

        Raises:
            GenerationError: there is no room for the question, which is then forgotten.
            DataError: the template refuses it, likewise.
        """
        self.messages.append(Message("user", text))
        return self._answer()

    def ask_again(self) -> Generator[str, None, None]:
        """Yield another answer to the last question, drawn anew.

        Raises:
            GenerationError: nothing has been asked.
        """
        while self.messages and self.messages[-1].role != "user":
            self.messages.pop()
        if not self.messages:
            raise GenerationError("nothing has been asked yet")
        return self._answer()

    def reset(self) -> None:
        """Forget what was said; the system's text stays."""
        self.messages = []

    def close(self) -> None:
        """Give the model back."""
        self._session.close()

    @property
    def num_read(self) -> int:
        """Tokens that the model had to read for the last answer: the rest it still knew."""
        return self._session.num_read

    def _answer(self) -> Generator[str, None, None]:
        try:
            ids = self._write()
        except Exception:
            self.messages.pop()
            raise
        self._seed += 1
        reader = AnswerReader(self._tokenizer, ids, self._stop, show_reasoning=self._show_reasoning)
        try:
            for token in self._session.stream(
                ids, self._max_new_tokens, self._sampling, self._seed, self._stop_ids
            ):
                if piece := reader.push(token):
                    yield piece
                if reader.is_stopped:
                    break
            if piece := reader.finish():
                yield piece
        finally:
            self.messages.append(
                Message("assistant", reader.answer, reasoning_content=reader.reasoning or None)
            )

    def _write(self) -> list[int]:
        """Return the conversation as the model reads it, without its oldest turns where there is no room for them."""
        room = self._longest - min(self._max_new_tokens, self._longest // 4)
        first = 0
        while True:
            ids = self._encode(self.messages[first:])
            if len(ids) <= room:
                break
            later = [
                place for place in range(first + 1, len(self.messages)) if self.messages[place].role == "user"
            ]
            if not later:
                raise GenerationError(
                    f"the question takes {len(ids)} tokens with what is written around it; the model takes "
                    f"{self._longest}, of which {self._longest - room} are kept for the answer. Ask a shorter one."
                )
            first = later[0]
        self.num_left_out = first
        return ids

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            text = "".join(message.content for message in messages)
            return self._tokenizer.encode(text, add_bos=True, add_eos=False)
        system = [Message("system", self.system)] if self.system else []
        ids = apply_chat_template(
            self._tokenizer,
            [*system, *(replace(message, reasoning_content=None) for message in messages)],
            template=self._template,
            add_generation_prompt=True,
            **self._variables,
        )
        assert isinstance(ids, list), "ids were asked for"
        return ids
