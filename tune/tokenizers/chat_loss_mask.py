"""What a model has to write in a conversation, found by rendering it up to each answer and past it.

For the answer in message i, the prompt is what the template writes of the messages before it with its generation
prompt. The answer is what the template writes after that prompt once the message is there, up to and with the
special token that ends the turn. Nothing else is learnt: not the header of the turn, which the generation prompt
holds, and not the line break after its end, which nobody has to write any more.

Templates that write an answer otherwise once more turns follow (thinking is taken out, a system text moves) make one
conversation several examples, in each of which the answers learnt stand as they stand when they are generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tune.errors import DataError
from tune.tokenizers.chat_turn_end import end_of_turn
from tune.tokenizers.learnt_places import BLANK, answer_places, asked_places, split_thought
from tune.tokenizers.messages import Message, WeightedSpan
from tune.tokenizers.special_token_escape import Conversation

# By which a prompt ends that asks for a thought before the answer.
_OPENED_THOUGHT = re.compile(r"<([\w:.-]*(?:think|thought|reason)[\w:.-]*)>\s*\Z")
# And by which one ends that closes a thought at once, in special tokens that no answer in the conversation has.
_EMPTY_THOUGHT = re.compile(r"<\|(\w+)>\w*\s*<\1\|>\s*\Z")


@dataclass(frozen=True)
class Turn:
    """An answer as it is generated: marked text that is read, and marked text that is to be written."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer

    def begins(self, text: str) -> bool:
        """Return whether a text begins with it."""
        return text.startswith(self.prompt) and text.startswith(self.answer, len(self.prompt))


Place = tuple[int, int]


@dataclass(frozen=True)
class LearntText:
    """A text to learn from, marked, and the places [start, end) of what is learnt, in characters without marks.

    Each place has its weight.

    Args:
        text: all of it.
        turns: answers that stand in it as they are generated.
        places: for each of these turns, where what is learnt of it stands; then, for what follows them all.
        end: where the answer ends that is the last message, None where that is not in the text as it is generated.
        is_parted: whether messages are learnt in parts, so that places may stand side by side.
    """

    text: str
    turns: tuple[Turn, ...]
    places: tuple[tuple[WeightedSpan, ...], ...]
    end: int | None
    is_parted: bool = False


def write_examples(
    conversation: Conversation,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    num_messages: int | None = None,
) -> list[LearntText]:
    """Return the texts to learn a conversation from: one, unless the template rewrites earlier turns.

    Args:
        conversation: renders it.
        messages: say what is learnt, and with what weight.
        stop_ids: what ends a generation, beside the token by which the template ends a turn.
        num_messages: answers behind the first so many are left unlearnt, but for one; None for no such limit.

    Raises:
        DataError: an answer cannot be found in what the template writes; names template and message.
    """
    writer = _Writer(conversation, messages, stop_ids)
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    rest = [index for index in answers if messages[index].weight or writer.is_prompt_learnt(index)]
    rest = [index for index in rest if num_messages is None or index < num_messages] or rest[:1]
    if not rest:
        return [writer.unlearnt()]
    last, *others = rest[::-1]
    conversation.want(
        [
            *((last, True), (last + 1, False), (len(messages), False)),
            *((index + after, not after) for index in others for after in (0, 1)),
        ]
    )
    found: list[LearntText] = []
    while rest:
        text = writer.text_ending_in(rest[-1], is_last=not found)
        inside = [index for index in rest if writer.turn(index).begins(text)]
        found.append(writer.written(text, inside))
        rest = [index for index in rest if index not in inside]
    return found[::-1]


class _Writer:
    def __init__(
        self, conversation: Conversation, messages: Sequence[Message], stop_ids: Sequence[int]
    ) -> None:
        self._chat = conversation
        self._messages = messages
        self._ends = {
            *stop_ids,
            *end_of_turn(conversation.template, conversation.escaper, conversation.names),
        }
        self._turns: dict[int, Turn] = {}
        self._is_parted = any(message.spans or message.masks_reasoning for message in messages)

    def turn(self, index: int) -> Turn:
        if index not in self._turns:
            self._turns[index] = self._read_turn(index)
        return self._turns[index]

    def is_prompt_learnt(self, index: int) -> bool:
        return any(message.weight for message in self._asked(index))

    def unlearnt(self) -> LearntText:
        """Return the conversation with nothing in it learnt, but for a last question that is not masked."""
        return self.written(self._chat.render(len(self._messages)), ())

    def text_ending_in(self, index: int, is_last: bool) -> str:
        """Return the text whose last learnt answer is that of a message, as much like the template's as can be."""
        wanted = self.turn(index).text
        for num_messages in (len(self._messages), index + 1) if is_last else (index + 1,):
            text = self._chat.render(num_messages)
            if text.startswith(wanted):
                return text
        return wanted

    def written(self, text: str, inside: Sequence[int]) -> LearntText:
        """Return the places that are learnt in a text which holds the answers `inside` as they are generated."""
        places = []
        for index in inside:
            turn = self.turn(index)
            start = self._chat.length(turn.prompt)
            asked = self._asked_places(index, text, turn.prompt, start)
            answer = self._chat.without_marks(turn.answer)
            places.append((*asked, *answer_places(self._messages[index], answer, start)))
        last = len(self._messages) - 1
        is_last_inside = last in self._turns and self._turns[last].begins(text)
        return LearntText(
            text,
            tuple(self.turn(index) for index in inside),
            (*places, self._tail_of(text)),
            self._chat.length(self._turns[last].text) if is_last_inside else None,
            self._is_parted,
        )

    def _tail_of(self, text: str) -> tuple[WeightedSpan, ...]:
        """Return the place of messages after the last answer, if they are in the text and learnt."""
        num_messages = len(self._messages)
        if not self.is_prompt_learnt(num_messages) or text != self._chat.render(num_messages):
            return ()
        return self._asked_places(num_messages, text, text, self._chat.length(text))

    def _asked_places(self, index: int, text: str, prompt: str, end: int) -> tuple[WeightedSpan, ...]:
        """Return the places of what stands between the answer before a message and that message, if it is learnt."""
        asked = self._asked(index)
        if not self.is_prompt_learnt(index):
            return ()
        begin = self._end_before(index, text)
        low = self._chat.length(text[:begin])
        weights = {message.weight for message in asked}
        if len(weights) == 1 and not any(message.spans for message in asked):
            return ((low, end, weights.pop()),)
        blanked, tokens, done = "", {}, begin
        for found in self._chat.tokens(prompt[begin:]):
            blanked += self._chat.without_marks(prompt[done : begin + found.start()])
            if self._chat.escaper.ids[found.group()] in self._ends:
                tokens[len(blanked)] = len(blanked) + len(found.group())
            blanked += BLANK * len(found.group())
            done = begin + found.end()
        blanked += self._chat.without_marks(prompt[done:])
        counts = range(index - len(asked) + 1, index + 1)
        places = asked_places(asked, blanked, [self._end_within(prompt, begin, n) for n in counts], tokens)
        return tuple((low + start, low + end, weight) for start, end, weight in places)

    def _end_within(self, prompt: str, begin: int, num_messages: int) -> int | None:
        """Return where the first messages end in a prompt, as characters without marks behind `begin`.

        None where the template does not write them as they are.
        """
        try:
            shown = self._chat.render(num_messages)
        except DataError:  # a template may refuse a conversation that ends there
            return None
        return self._chat.length(shown[begin:]) if prompt.startswith(shown) else None

    def _asked(self, index: int) -> Sequence[Message]:
        """Return the messages between the answer before a message and that message."""
        start = index
        while start > 0 and self._messages[start - 1].role != "assistant":
            start -= 1
        return self._messages[start:index]

    def _end_before(self, index: int, text: str) -> int:
        """Return where the answer before a message's prompt ends, in marked text."""
        before = index - len(self._asked(index)) - 1
        if before < 0:
            return 0
        turn = self.turn(before)
        if turn.begins(text):
            return len(turn.prompt) + len(turn.answer)
        # Written otherwise once others follow: without its thinking, as a rule.
        said = turn.answer.rpartition("</think>")[2].lstrip()
        shown = self.turn(index).prompt if index < len(self._messages) else text
        header = self._header(turn.prompt)
        place = shown.rfind(header, 0, len(shown) - len(header) * shown.endswith(header)) if header else -1
        place = shown.find(said, place) if place >= 0 and self._messages[before].content.strip() else -1
        if place < 0:
            raise DataError(
                f"{self._chat.template} rewrites message {before + 1} once others follow, so it cannot be told where "
                "the prompt after it starts, and prompts shall be learnt: use train_on_input=False"
            )
        return place + len(said)

    def _read_turn(self, index: int) -> Turn:
        prompt = self._chat.render(index, add_generation_prompt=True)
        shown = self._chat.render(index + 1)
        opened, empty = _OPENED_THOUGHT.search(prompt), self._empty_thought(prompt)
        if shown.startswith(prompt):
            after = shown[len(prompt) :]
        elif empty and shown.startswith(prompt[: empty.start()]):
            after = shown[empty.start() :]
            if after.startswith(f"<|{empty[1]}>"):  # with a thought, which the model begins itself
                prompt = prompt[: empty.start()]
        elif opened and shown.startswith(prompt[: opened.start()]):
            after = self._with_thought(index, opened, shown[opened.start() :])
        else:
            after = self._after_header(prompt, shown, index)
        answer = after[: self._end_of_answer(after, index)]
        self._check_answer(self._chat.without_marks(answer), index)
        return Turn(prompt, answer)

    def _empty_thought(self, prompt: str) -> re.Match[str] | None:
        """Return the thought without words that a prompt ends with, if it is the template's own."""
        found = _EMPTY_THOUGHT.search(prompt)
        is_own = found and any(token.start() == found.start() for token in self._chat.tokens(prompt))
        return found if is_own else None

    def _with_thought(self, index: int, opened: re.Match[str], after: str) -> str:
        """Return an answer that was written without its thought as a model writes it that is asked to think first."""
        opening, closing = f"<{opened[1]}>", f"</{opened[1]}>"
        if self._chat.without_marks(after.lstrip()).startswith(opening):
            after = after[after.index(opening) + len(opening) :].lstrip()
        if closing in self._chat.without_marks(after).removeprefix(closing):
            return after  # with its thought
        message = self._messages[index]
        thought = (message.reasoning_content or split_thought(message.content)[0]).strip()
        line = "\n" if "\n" in opened.group() else ""
        if not after.startswith(closing):
            after = closing + 2 * line + (after.lstrip("\n") if line else after)
        return self._chat.mark(thought) + line + after

    def _after_header(self, prompt: str, shown: str, index: int) -> str:
        """Return what follows the end of the prompt where the template also wrote something before it otherwise."""
        header = self._header(prompt)
        places = [
            found.start() for found in self._chat.tokens(shown) if shown.startswith(header, found.start())
        ]
        if not header or not places:
            raise DataError(
                f"{self._chat.template} asks for the answer in message {index + 1} with {_clean(header)!r}, and writes "
                f"the answer without it: ...{_clean(self._chat.without_marks(shown[-80:]))!r}. What the model should "
                "write cannot be told; choose another template with prompt_template, a .jinja file of your own included"
            )
        # An answer of several parts, its thought first, has the header before each: the first stands behind what the
        # prompt ends in before it, too.
        before = prompt.removesuffix(header)
        return shown[
            max(places, key=lambda place: (_shared_end(before, shown[:place]), place)) + len(header) :
        ]

    def _header(self, prompt: str) -> str:
        """Return what asks for an answer, from the last special token on: text alone could stand in any message."""
        return prompt[max((found.start() for found in self._chat.tokens(prompt)), default=len(prompt)) :]

    def _end_of_answer(self, after: str, index: int) -> int:
        tokens = self._chat.tokens(after)
        ends = [found for found in tokens if self._chat.escaper.ids[found.group()] in self._ends]
        if ends:
            return ends[0].end()
        # A call of a tool may end in another token than an answer does.
        if tokens and not after[tokens[-1].end() :].strip():
            return tokens[-1].end()
        raise DataError(
            f"{self._chat.template} ends message {index + 1} with {_clean(self._chat.without_marks(after[-40:]))!r}, "
            "which is no special token of this tokenizer: a model would never learn to stop. Choose a prompt_template "
            "that fits the tokenizer"
        )

    def _check_answer(self, answer: str, index: int) -> None:
        """Raise DataError where what the message says is not in what would be learnt."""
        message = self._messages[index]
        # Thinking written into the content is taken apart and set anew by templates that know it; others drop it.
        before, _, said = message.content.rpartition("</think>")
        thought = before.partition("<think>")[2] or before
        missing = ""
        if said.strip() not in answer:
            missing = f"its content {_clean(said.strip())!r}"
        if thought.strip() not in answer:
            missing = f"the thinking {_clean(thought.strip())!r}"
        if message.reasoning_content and message.reasoning_content.strip() not in answer:
            missing = "its reasoning_content"
        for call in message.tool_calls:
            function = call.get("function", call)
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or name not in answer:
                missing = f"the call of {name!r}"
        if missing:
            raise DataError(
                f"{self._chat.template} does not write {missing} in message {index + 1}: it writes {_clean(answer)!r}. "
                "Take it out of the data, or choose a prompt_template that knows it"
            )


def _shared_end(left: str, right: str) -> int:
    """Return how many characters two texts have in common at their ends."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if right.endswith(left[-middle:]) else (low, middle - 1)
    return low


def _clean(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
