"""Special tokens written out in data: noticed in the first rows, and read as meant where that is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tune.data import MessageTransform
from tune.datasets.reading import RowReader
from tune.errors import DataError
from tune.tokenizers.chat_template import ChatTemplate
from tune.tokenizers.control_tokens import check_control_tokens

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer
    from tune.tokenizers.templates import AnyTemplate

_TEXTS = (
    "texts that hold whole conversations are read as dataset=text_completion, and messages that are taken apart as "
    "dataset=chat"
)
_MESSAGES = "a chat template writes them itself, so messages need none"
_DOCUMENTS = "conversations that are given as messages are read as dataset=chat"


def parses_messages(
    tokenizer: Tokenizer,
    rows: RowReader,
    transform: MessageTransform,
    template: AnyTemplate,
    choice: bool | None,
) -> bool:
    """Return whether special tokens written out in messages are meant as such: only where that is said.

    Raises:
        DataError: nothing is said, and the first rows are in a chat format already.
    """
    if choice is None:
        kind = _MESSAGES if isinstance(template, ChatTemplate) else _TEXTS
        check_control_tokens(tokenizer, _contents(rows, transform), rows.report.source, kind)
    return bool(choice)


def parses_documents(tokenizer: Tokenizer, rows: RowReader, column: str, choice: bool | None) -> bool:
    """Return whether special tokens written out in documents are meant as such, as `parses_messages`."""
    if choice is None:
        texts = (values.get(column) for values in rows.peeked())
        documents = ([(text, True)] for text in texts if isinstance(text, str))
        check_control_tokens(tokenizer, documents, rows.report.source, _DOCUMENTS)
    return bool(choice)


def _contents(rows: RowReader, transform: MessageTransform) -> Iterator[Sequence[tuple[str, bool]]]:
    for values in rows.peeked():
        try:
            read = transform(values)
        except DataError:  # it is told when the row is read
            continue
        yield [(message.content, message.role == "assistant") for message in read.get("messages", ())]
