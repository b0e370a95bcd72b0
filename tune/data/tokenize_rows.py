"""Rows of data as tokenized examples: what one process does, or each of many; it needs no torch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tune.data.files import Row
from tune.data.long_text import encode_long
from tune.data.report import DataReport
from tune.data.rows import describe
from tune.data.store import Examples
from tune.data.values import unused_columns
from tune.errors import DataError, TokenizerError
from tune.tokenizers.chat_template import ChatTemplate, tokenize_weighted
from tune.tokenizers.messages import Message

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer
    from tune.tokenizers.templates import AnyTemplate

MessageTransform = Callable[[Mapping[str, Any]], Mapping[str, Any]]
OnTooLong = Literal["cut", "drop", "error", "split"]
ON_TOO_LONG: tuple[OnTooLong, ...] = ("cut", "drop", "error", "split")
_Example = tuple[list[int], list[float]]


@dataclass
class TokenizedRows:
    """What came of some rows, in their order.

    Attributes:
        examples: those that are kept.
        num_cut: tokens that each of them had beyond the limit.
        report: the counts.
        rejected: place and reason of each row that cannot be used.
        too_long: place and number of tokens of each example that is an error for its length.
    """

    examples: Examples
    num_cut: array[int] = field(default_factory=lambda: array("i"))
    report: DataReport = field(default_factory=DataReport)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    too_long: list[tuple[str, int]] = field(default_factory=list)

    def reject(self, place: str, reason: str) -> None:
        """Record that a row cannot be used."""
        self.rejected.append((place, reason))

    def count_cut(self, place: str, num_tokens: int, limit: int | None, on_too_long: OnTooLong) -> int | None:
        """Return how many tokens of an example lie beyond the limit, and count them; None where it is left out."""
        self.report.longest = max(self.report.longest, num_tokens)
        num_cut = 0 if limit is None else max(num_tokens - limit, 0)
        if num_cut and on_too_long == "error":
            self.too_long.append((place, num_tokens))
            return None
        if num_cut and on_too_long == "drop":
            self.report.num_long_dropped += 1
            return None
        self.report.num_truncated += num_cut > 0
        self.report.num_tokens_cut += num_cut
        return num_cut

    def keep(self, tokens: list[int], weights: list[float], num_cut: int = 0) -> bool:
        """Add an example and count it, where there is something to learn in it; return whether there is."""
        targets = weights[1:]  # the first token is the target of no position
        num_targets = len(targets) - targets.count(0.0)
        if num_targets < 1:
            return False
        self.examples.append(tokens, weights)
        self.num_cut.append(num_cut)
        self.report.num_examples += 1
        self.report.num_tokens += len(tokens)
        self.report.num_target_tokens += num_targets
        self.report.num_weighted_tokens += num_targets - targets.count(1.0)
        return True


@dataclass(frozen=True)
class ConversationTokenizer:
    """Tokenizes rows that a transform turns into conversations; it can be handed to another process.

    Args:
        tokenizer: gives the ids.
        template: writes the conversations, as it is used with this tokenizer.
        transform: turns the values of a row into `{"messages": [...]}`, with `"tools"` where there are any; or into
            `{"examples": [(tokens, weights)]}`.
        variables: further names that a chat template reads.
        limit: tokens that an example may have; None for any number.
        on_too_long: what becomes of one that has more.
        parse_special: special tokens written out in messages are meant as such.
    """

    tokenizer: Tokenizer
    template: AnyTemplate
    transform: MessageTransform
    variables: Mapping[str, Any]
    limit: int | None
    on_too_long: OnTooLong
    parse_special: bool = False

    def __call__(self, rows: Sequence[Row]) -> TokenizedRows:
        """Return what comes of some rows."""
        result = TokenizedRows(Examples(self.tokenizer.vocab_size))
        for row in rows:
            result.report.num_rows += 1
            if row.problem:
                result.reject(row.place, row.problem)
                continue
            try:
                read = self.transform(row.values)
                messages, tools, examples = read.get("messages", ()), read.get("tools"), read.get("examples")
                has_answer = examples is not None or _has_answer(messages)
                if has_answer is None:
                    result.report.num_unlearnt += 1
                    continue
                if examples is None:
                    examples = self.write(messages, tools)
                if self.on_too_long == "split":
                    examples = self._split(messages, tools, examples, result.report)
            except (DataError, TokenizerError) as error:
                result.reject(row.place, str(error))
                continue
            result.report.num_empty_answers += not has_answer
            result.report.note_row(read)
            for tokens, weights in examples:
                self._add(result, row.place, tokens, weights)
        return result

    def stopped(self, row: Row, error: Exception) -> TokenizedRows:
        """Return what stands for a row that took its process with it."""
        what = str(self.template) if isinstance(self.template, ChatTemplate) else "its tokenization"
        return _stopped(self.tokenizer, row, f"{what} is stopped: {error}")

    def write(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[_Example]:
        """Return the examples of a conversation, each its tokens and their weights."""
        return tokenize_weighted(
            self.tokenizer,
            self.template,
            messages,
            tools=tools,
            variables=self.variables,
            max_seq_len=self.limit if self.on_too_long == "cut" else None,
            parse_special=self.parse_special,
        )

    def _add(self, result: TokenizedRows, place: str, tokens: list[int], weights: list[float]) -> None:
        report, limit = result.report, self.limit
        if len(weights) > 1 and not any(weights[1:]):
            report.num_unlearnt += 1
            return
        num_cut = result.count_cut(place, len(tokens), limit, self.on_too_long)
        if num_cut is not None:
            report.num_lost += not result.keep(tokens[:limit], weights[:limit], num_cut)

    def _split(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        examples: list[_Example],
        report: DataReport,
    ) -> list[_Example]:
        """Return the examples of a conversation, those of several shorter ones where one of them is too long."""
        limit = self.limit
        num_long = sum(limit is not None and len(tokens) > limit for tokens, _ in examples)
        if limit is None or not num_long:
            return examples
        report.num_split += num_long
        report.longest = max(report.longest, *(len(tokens) for tokens, _ in examples))
        pieces = self._pieces(messages, tools, examples, limit)
        return [(tokens, weights) for tokens, weights in pieces if any(weights[1:])]

    def _pieces(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, examples: list[_Example], limit: int
    ) -> list[_Example]:
        if all(len(tokens) <= limit for tokens, _ in examples):
            return examples
        halves = _halves(messages)
        try:
            parts = [(half, self.write(half, tools)) for half in halves]
        except (DataError, TokenizerError):  # the template writes the whole alone
            parts = []
        if parts:
            return [piece for half, written in parts for piece in self._pieces(half, tools, written, limit)]
        return [
            (tokens[start : start + limit], [0.0, *weights[start + 1 : start + limit]])
            for tokens, weights in examples
            for start in window_starts(len(tokens), limit)
        ]


@dataclass(frozen=True)
class TextTokenizer:
    """Tokenizes rows of plain text, all of it to be learnt; it can be handed to another process.

    Args:
        tokenizer: gives the ids.
        column: holds the text.
        shown: the column as messages name it.
        add_eos: end each document with an EOS.
        limit: tokens that an example may have; None for any number.
        on_too_long: what becomes of a document that has more.
        parse_special: special tokens written out in a document are meant as such.
    """

    tokenizer: Tokenizer
    column: str
    shown: str
    add_eos: bool
    limit: int | None
    on_too_long: OnTooLong
    parse_special: bool = False

    def __call__(self, rows: Sequence[Row]) -> TokenizedRows:
        """Return what comes of some rows."""
        result = TokenizedRows(Examples(self.tokenizer.vocab_size))
        for row in rows:
            result.report.num_rows += 1
            text = row.values.get(self.column)
            if row.problem:
                result.reject(row.place, row.problem)
            elif not isinstance(text, str) or not text.strip():
                found = "empty" if isinstance(text, str) else describe(text)
                result.reject(row.place, f"column {self.shown!r} is {found}, expected text")
            else:
                try:
                    self._add(result, row.place, text)
                    unused = unused_columns(row.values, (self.column,))
                    result.report.note_row({"unused": dict.fromkeys(unused, 1)})
                except TokenizerError as error:
                    result.reject(row.place, str(error))
        return result

    def stopped(self, row: Row, error: Exception) -> TokenizedRows:
        """Return what stands for a row that took its process with it."""
        return _stopped(self.tokenizer, row, f"its tokenization is stopped: {error}")

    def _add(self, result: TokenizedRows, place: str, text: str) -> None:
        tokens = encode_long(self.tokenizer, text, self.add_eos, self.parse_special)
        report, limit, num_cut = result.report, self.limit, 0
        if self.on_too_long != "split":
            counted = result.count_cut(place, len(tokens), limit, self.on_too_long)
            if counted is None:
                return
            num_cut = counted
            del tokens[len(tokens) - num_cut :]
        for start in window_starts(len(tokens), limit):
            chunk = tokens[start : start + limit if limit else None].tolist()
            report.longest = max(report.longest, len(chunk))
            report.num_lost += not result.keep(chunk, [1.0] * len(chunk), num_cut)


def _stopped(tokenizer: Tokenizer, row: Row, reason: str) -> TokenizedRows:
    result = TokenizedRows(Examples(tokenizer.vocab_size))
    result.report.num_rows = 1
    result.reject(row.place, reason)
    return result


def window_starts(num_tokens: int, limit: int | None) -> range:
    """Return where pieces of at most `limit` tokens begin, each with the last token of the one before.

    So each token but the first is the target of exactly one position.
    """
    return range(0, max(num_tokens - 1, 1), max((limit or num_tokens) - 1, 1))


def _halves(messages: Sequence[Message]) -> list[list[Message]]:
    """Return a conversation as two, parted where the user speaks, nearest to the middle; [] where that is nowhere.

    Both begin with what the system says.
    """
    num_system = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    system, rest = list(messages[:num_system]), messages[num_system:]
    sizes = [len(m.content) + len(m.reasoning_content or "") + len(str(m.tool_calls)) for m in rest]
    starts = [i for i, m in enumerate(rest) if i and m.role == "user" and rest[i - 1].role != "user"]
    if not starts:
        return []
    at = min(starts, key=lambda i: abs(2 * sum(sizes[:i]) - sum(sizes)))
    return [[*system, *rest[:at]], [*system, *rest[at:]]]


def _has_answer(messages: Sequence[Message]) -> bool | None:
    """Return whether an answer says something; None where nothing is learnt, since all that is said has weight 0.

    Raises:
        DataError: there is nothing to learn, for nothing is said.
    """
    answers = [m for m in messages if m.role == "assistant" and (m.content.strip() or m.tool_calls)]
    if any(answer.weight for answer in answers):
        return True
    # Where prompts are learnt too, an example without an answer still teaches something.
    if any(m.weight and m.content.strip() for m in messages):
        return bool(answers)
    if answers:
        return None
    raise DataError("the answer is empty, so there is nothing to learn")
