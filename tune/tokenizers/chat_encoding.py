"""From a conversation's texts to ids with weights: every stretch of text is encoded once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from operator import eq
from typing import TYPE_CHECKING

from tune.errors import DataError
from tune.tokenizers.chat_loss_mask import LearntText, Place, Turn
from tune.tokenizers.learnt_places import weigh_tokens
from tune.tokenizers.special_token_escape import Conversation
from tune.tokenizers.token_spans import find_spans

if TYPE_CHECKING:
    from tune.tokenizers.messages import Message
    from tune.tokenizers.protocol import Tokenizer


class EncodedText:
    """A marked text as ids.

    Args:
        text: the text.
        tokens: where the template's special tokens stand in it.
        ids: all ids.
        starts: for each the first of the characters that it stands for, without marks.
        ends: for each the end of these characters.
    """

    def __init__(
        self, text: str, tokens: list[Place], ids: list[int], starts: list[int], ends: list[int]
    ) -> None:
        self.text = text
        self.tokens = tokens
        self.ids = ids
        self.starts = starts
        self.ends = ends
        self._num_empty = Counter(compress(starts, map(eq, starts, ends)))
        self.is_ordered = starts == (first := sorted(starts)) and ends == (last := sorted(ends))
        self._ordered = (starts, ends) if self.is_ordered else (first, last)

    def num_starting_before(self, place: int) -> int:
        """Return how many tokens start before a place."""
        return bisect_left(self._ordered[0], place)

    def num_ending_by(self, place: int) -> int:
        """Return how many tokens end at or before a place."""
        return bisect_right(self._ordered[1], place)

    def is_split_by(self, place: int) -> bool:
        """Return whether a token reaches over a place."""
        num_ended = self.num_ending_by(place) - self._num_empty[place]
        return self.num_starting_before(place) > num_ended

    def weights(self, written: LearntText, plain_text: str) -> list[float]:
        """Return the weight of each token, 0 where it is not learnt; `plain_text` is the text without marks."""
        weights = [0.0] * len(self.ids)
        if written.is_parted:
            order = sorted(range(len(self.ids)), key=lambda index: (self.starts[index], self.ends[index]))
            spans = [(self.starts[index], self.ends[index]) for index in order]
            places = sorted(place for places in written.places for place in places)
            for index, weight in zip(order, weigh_tokens(plain_text, spans, places)):
                weights[index] = weight
            return weights
        # Where two places overlap, the first one counts.
        for start, end, weight in reversed([place for places in written.places for place in places]):
            if self.is_ordered:
                first, last = self.num_starting_before(start), self.num_starting_before(end)
                weights[first:last] = [weight] * max(0, last - first)
            else:
                for index in (index for index, place in enumerate(self.starts) if start <= place < end):
                    weights[index] = weight
        return weights


class ConversationEncoder:
    """Encodes the texts of one conversation; those that begin like the first one share its ids.

    Args:
        tokenizer: gives the ids.
        conversation: wrote the texts.
    """

    def __init__(self, tokenizer: Tokenizer, conversation: Conversation) -> None:
        self._tokenizer = tokenizer
        self._chat = conversation
        self._first: EncodedText | None = None
        self._tails: dict[tuple[str | int, ...], list[int]] = {}

    def encode(self, text: str) -> EncodedText:
        """Return a marked text as ids."""
        if self._first is not None and self._first.text == text:
            return self._first
        encoded = self._encode_rest(text) or self._encode_from(text, 0)
        self._first = self._first or encoded
        return encoded

    def num_messages_within(self, messages: Sequence[Message], limit: int) -> int:
        """Return how many of the first messages hold all answers that begin within a number of tokens, and one more.

        Args:
            messages: of the conversation.
            limit: tokens that are kept of a text.
        """
        if sum(len(message.content) for message in messages) <= limit:
            return len(messages)
        text = self._chat.render(len(messages))
        shown, encoded, place = self._chat.without_marks(text), self.encode(text), 0
        for index, message in enumerate(messages):
            if message.role == "assistant" and encoded.num_starting_before(place) > limit:
                # A content may stand elsewhere, too, and its own place be another.
                return index + 1 if self._is_longer(index, limit) else len(messages)
            content = message.content.strip()
            found = shown.find(content, place)
            place = found + len(content) if found >= 0 else place
        return len(messages)

    def examples(self, written: LearntText, add_eos: bool = True) -> list[tuple[list[int], list[float]]]:
        """Return the ids of a text, and for each its weight, 0 where it is not learnt.

        Each prompt has the ids it has by itself, as a model reads it that is asked. Where a token of the whole text
        would reach from a prompt into its answer, each turn becomes an example whose prompt and answer are encoded
        apart.

        Args:
            written: the text, and what is learnt of it.
            add_eos: False leaves out the end of the last answer.
        """
        encoded = self.encode(written.text)
        if all(self._stands_alone(turn, encoded) for turn in written.turns):
            return [self._with_weights(encoded, written, add_eos)]
        examples = []
        for turn, places in zip(written.turns, written.places):
            is_last = turn is written.turns[-1]
            # What follows the last answer, a line break perhaps, is kept.
            text = written.text if is_last else turn.text
            alone = replace(
                written,
                text=text,
                turns=(turn,),
                places=(places, written.places[-1]),
                end=written.end if is_last else None,
            )
            apart = self._encode_apart(turn.prompt, text[len(turn.prompt) :], written.is_parted)
            examples.append(self._with_weights(apart, alone, add_eos))
        return examples

    def _is_longer(self, index: int, limit: int) -> bool:
        """Return whether the prompt for a message is known to have more than so many tokens."""
        try:
            prompt = self._chat.render(index, add_generation_prompt=True)
        except DataError:  # which is told, if anybody needs that prompt
            return False
        return len(self.encode(prompt).ids) > limit

    def _with_weights(
        self, encoded: EncodedText, written: LearntText, add_eos: bool
    ) -> tuple[list[int], list[float]]:
        ids = encoded.ids
        weights = encoded.weights(
            written, self._chat.without_marks(encoded.text) if written.is_parted else ""
        )
        # Nothing comes before a BOS that it could follow from.
        if ids and ids[0] == self._tokenizer.bos_id:
            weights[0] = 0.0
        if written.end is not None and not add_eos:
            num_kept = encoded.num_starting_before(written.end) - 1
            return ids[:num_kept], weights[:num_kept]
        return list(ids), weights

    def _stands_alone(self, turn: Turn, encoded: EncodedText) -> bool:
        """Return whether the ids before an answer are those of its prompt by itself."""
        cut = self._chat.length(turn.prompt)
        if encoded.is_split_by(cut):
            return False
        # Text is encoded apart on both sides of a special token: only the last of it can differ.
        number = bisect_right(encoded.tokens, len(turn.prompt), key=lambda place: place[1])
        start = encoded.tokens[number - 1][0] if number else 0
        pieces = self._chat.split(turn.prompt[start:])
        last = max((place for place, piece in enumerate(pieces) if isinstance(piece, int)), default=0)
        tail = tuple(pieces[last:])
        if tail not in self._tails:
            self._tails[tail] = self._tokenizer.encode_pieces(tail)
        num_before, ids = encoded.num_ending_by(cut), self._tails[tail]
        return encoded.ids[num_before - len(ids) : num_before] == ids

    def _encode_from(self, text: str, start: int) -> EncodedText:
        """Return a text from a place on, with the places of the whole."""
        pieces, tokens = self._chat.split_with_places(text[start:])
        ids, spans = self._tokenizer.encode_pieces_with_spans(pieces)
        return EncodedText(
            text,
            [(first + start, last + start) for first, last in tokens],
            ids,
            [first + start for first, _ in spans],
            [last + start for _, last in spans],
        )

    def _encode_rest(self, text: str) -> EncodedText | None:
        """Return a text of which only what differs from the first one is encoded, None where that does not do."""
        first = self._first
        # With marks, characters of the text and of the tokens' places are not the same ones.
        if first is None or not first.is_ordered or self._chat.has_marks:
            return None
        # Which token stands somewhere is told by as many characters as the longest has.
        same = _common_length(first.text, text) - self._chat.escaper.longest
        number = bisect_right(first.tokens, same, key=lambda place: place[1]) - 1
        if number < 1:
            return None
        start = first.tokens[number][0]
        index = first.num_ending_by(start)
        rest = self._encode_from(text, start)
        # A token that counts beside some neighbours only may not have been one.
        if rest.ids[:1] != first.ids[index : index + 1] or first.starts[index] > start:
            return None
        return EncodedText(
            text,
            first.tokens[:number] + rest.tokens,
            first.ids[:index] + rest.ids,
            first.starts[:index] + rest.starts,
            first.ends[:index] + rest.ends,
        )

    def _encode_apart(self, prompt: str, rest: str, is_parted: bool) -> EncodedText:
        """Return a prompt and what follows it, with no token that reaches over."""
        read = self.encode(prompt)
        offset = self._chat.length(prompt)
        pieces: Sequence[str | int] = self._chat.split(rest)
        head = pieces[0] if isinstance(pieces[0], str) else ""
        # All of it is answer: a special token ends it.
        ids = self._tokenizer.encode(head, add_bos=False, add_eos=False, continuation=True) if head else []
        more_ids, more_spans = self._tokenizer.encode_pieces_with_spans(pieces[bool(head) :])
        # Where all of it is learnt alike, it does not matter what each token stands for.
        spans = (find_spans(self._tokenizer, head, ids) if is_parted else None) or [(0, len(head))] * len(ids)
        spans += [(start + len(head), end + len(head)) for start, end in more_spans]
        return EncodedText(
            prompt + rest,
            [],
            read.ids + ids + more_ids,
            read.starts + [offset + start for start, _ in spans],
            read.ends + [offset + end for _, end in spans],
        )


def _common_length(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
