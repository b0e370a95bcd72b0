"""Supervised fine-tuning: conversations as tokens, with labels where the model shall learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from tune.data import (
    ConversationTokenizer,
    DataReport,
    Message,
    MessageTransform,
    PromptTemplate,
    Source,
    get_prompt_template,
)
from tune.data.tokenize_rows import OnTooLong
from tune.datasets.reading import OnBadRows, RowReader, sequence_limit
from tune.datasets.tokenizing import RowTokenizer, tokenize_source
from tune.datasets.written_tokens import parses_messages
from tune.tokenizers.chat_template import (
    CHECKPOINT_TEMPLATE,
    ChatTemplate,
    apply_chat_template,
    template_for,
)
from tune.tokenizers.templates import check_variables

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer


class SFTDataset(Dataset[dict[str, list[Any]]]):
    """Conversations of a source, tokenized once, when the dataset is made.

    Items are `{"tokens": [...], "labels": [...]}` of equal length, labels not shifted, -100 where a token is
    not learnt; and `"weights"`, one float for each token, where the loss of a learnt token is to be multiplied by
    another than 1. An example longer than the limit keeps its first tokens and loses its EOS, unless `on_too_long` says
    otherwise; one whose answers lie wholly beyond the limit is left out. Both are counted in `report()`. A chat
    template that rewrites earlier answers, by taking out their thinking for example, makes one conversation several
    items.

    Args:
        tokenizer: gives the ids, and the limit where `max_seq_len` does not.
        source: the rows: a file, folder or hub name; a `tune.data.Source`; any iterable of mappings
            from column to value; or a reader of these, which then decides about bad rows.
        message_transform: turns a row into `{"messages": [...]}`, with `"tools"` where there are any; or into
            `{"examples": [...]}`, each a pair of tokens and their weights.
        prompt_template: how conversations are written; see `tune.data.get_prompt_template`.
        inference_template: what `render_prompt` uses where `message_transform` writes the prompts itself.
        system_prompt: that of every conversation, if they share one, for `render_prompt` to put first.
        chat_template_kwargs: further names that a chat template reads, such as `enable_thinking`.
        max_seq_len: tokens to keep of an example; the smaller of this and the tokenizer's counts.
        on_bad_rows: what to do with rows that are malformed or hold nothing to learn: stop with an error
            that lists them, or leave them out and count them.
        on_too_long: what to do with an example longer than the limit: "cut" it; "drop" it; stop with an "error"; or
            "split" it: a conversation is parted where the user speaks, and begins anew with what the system says; one
            exchange that is still too long comes in pieces, each beginning with the last token of the one before.
        parse_special_tokens: special tokens written out in messages are meant as such; None makes it an error where the
            first rows are in a chat format already.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the source cannot be read, has bad rows, or holds nothing to learn.
        TokenizerError: the template does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        source: str | Source | RowReader | Iterable[Mapping[str, Any]],
        message_transform: MessageTransform,
        prompt_template: str | dict[str, list[str]] | PromptTemplate | ChatTemplate = "plain",
        inference_template: PromptTemplate | ChatTemplate | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: dict[str, str | bool | int | float] | None = None,
        max_seq_len: int | None = None,
        on_bad_rows: OnBadRows = "error",
        on_too_long: OnTooLong = "cut",
        parse_special_tokens: bool | None = False,
    ) -> None:
        rows = source if isinstance(source, RowReader) else RowReader(source, on_bad_rows)
        self._tokenizer = tokenizer
        # What does not fit the tokenizer is no fault of the rows.
        self._template = template_for(get_prompt_template(prompt_template), tokenizer)
        self._variables: dict[str, Any] = dict(chat_template_kwargs or {})
        check_variables(self._template, self._variables, "dataset.chat_template_kwargs")
        if isinstance(self._template, ChatTemplate):
            self._template.check()
        self._system_prompt = system_prompt or ""
        self._inference_template = inference_template or self._template
        rows.report.template = self._inference_template.name
        rows.report.max_seq_len = limit = sequence_limit(tokenizer, max_seq_len, on_too_long)
        parse = parses_messages(tokenizer, rows, message_transform, self._template, parse_special_tokens)
        self._store, self._report = tokenize_source(
            rows,
            self._job(
                ConversationTokenizer(
                    tokenizer, self._template, message_transform, self._variables, limit, on_too_long, parse
                )
            ),
        )
        tokenizer.adopt_chat_template(self._inference_template, self._system_prompt, self._variables)
        if isinstance(self._template, ChatTemplate) and (
            self._template.name == "custom" or self._system_prompt or self._variables
        ):
            self._report.template = CHECKPOINT_TEMPLATE  # which it is from now on, all that it needs included

    @staticmethod
    def _job(conversations: ConversationTokenizer) -> RowTokenizer:
        """Return what makes examples of rows; of other tasks it is another."""
        return conversations

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        return self._store.example(index)

    def length(self, index: int) -> int:
        """Return the number of tokens of an example without making it."""
        return self._store.length(index)

    def report(self) -> DataReport:
        """Return what was read: examples, tokens, the share trained on, what was cut or left out."""
        return self._report

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`, as `tune.generation.generate_text` takes it.

        A text template gives a text, ready for `encode(..., add_eos=False)`; a chat template gives ids, for its
        special tokens cannot be told from their names in a text.
        """
        template = self._inference_template
        if not isinstance(template, ChatTemplate):
            return template.prompt(text, self._system_prompt)
        messages = [Message("system", self._system_prompt)] if self._system_prompt else []
        return apply_chat_template(
            self._tokenizer,
            [*messages, Message("user", text)],
            template=template,
            add_generation_prompt=True,
            **self._variables,
        )
