"""Supervised fine-tuning: conversations as tokens, with labels where the model shall learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from tune.data import (
    DataReport,
    Message,
    PromptTemplate,
    Source,
    TokenStore,
    get_prompt_template,
)
from tune.datasets.reading import OnBadRows, RowReader, add_example, check_learnable, sequence_limit
from tune.errors import DataError, TokenizerError
from tune.tokenizers.chat_template import (
    CHECKPOINT_TEMPLATE,
    ChatTemplate,
    apply_chat_template,
    template_for,
    tokenize_weighted,
)
from tune.tokenizers.templates import check_variables

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

MessageTransform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class SFTDataset(Dataset[dict[str, list[Any]]]):
    """Conversations of a source, tokenized once, when the dataset is made.

    Items are `{"tokens": [...], "labels": [...]}` of equal length, labels not shifted, -100 where a token is
    not learnt; and `"weights"`, one float for each token, where the loss of a learnt token is to be multiplied by
    another than 1. An example longer than the limit keeps its first tokens and loses its EOS; one whose answers
    lie wholly beyond the limit is left out. Both are counted in `report()`. A chat template that rewrites earlier
    answers, by taking out their thinking for example, makes one conversation several items.

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
    ) -> None:
        rows = source if isinstance(source, RowReader) else RowReader(source, on_bad_rows)
        self._store = TokenStore(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        # What does not fit the tokenizer is no fault of the rows.
        self._template = template_for(get_prompt_template(prompt_template), tokenizer)
        self._variables: dict[str, Any] = dict(chat_template_kwargs or {})
        check_variables(self._template, self._variables, "dataset.chat_template_kwargs")
        if isinstance(self._template, ChatTemplate):
            self._template.check()
        self._system_prompt = system_prompt or ""
        self._inference_template = inference_template or self._template
        self._report = rows.report
        self._report.template = self._inference_template.name
        self._report.max_seq_len = limit = sequence_limit(tokenizer, max_seq_len)
        for place, values in rows:
            try:
                read = message_transform(values)
                examples = read.get("examples")
                has_answer = examples is not None or _has_answer(read["messages"])
                if has_answer is None:
                    self._report.num_unlearnt += 1
                    continue
                if examples is None:
                    examples = tokenize_weighted(
                        tokenizer,
                        self._template,
                        read["messages"],
                        tools=read.get("tools"),
                        variables=self._variables,
                    )
            except (DataError, TokenizerError) as error:
                rows.reject(place, str(error))
                continue
            self._report.num_empty_answers += not has_answer
            self._report.note_row(read)
            for tokens, weights in examples:
                add_example(self._store, self._report, tokens, weights, limit)
        rows.finish()
        check_learnable(self._report)
        tokenizer.adopt_chat_template(self._inference_template, self._system_prompt, self._variables)
        if isinstance(self._template, ChatTemplate) and (
            self._template.name == "custom" or self._system_prompt or self._variables
        ):
            self._report.template = CHECKPOINT_TEMPLATE  # which it is from now on, all that it needs included

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
