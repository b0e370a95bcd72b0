"""What every tokenizer offers, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tune.tokenizers.messages import Message

if TYPE_CHECKING:
    from tune.tokenizers.templates import PromptTemplate


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocab_size: number of ids the tokenizer can produce, added tokens included.
        bos_id, eos_id, pad_id: ids of the special tokens; `pad_id` is always a valid row of an embedding.
        stop_ids: ids that end a generation, `eos_id` among them.
        max_seq_len: tokens after which datasets truncate an example; None for no limit.
        prompt_template: the template of this tokenizer's model, or None.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    max_seq_len: int | None
    prompt_template: PromptTemplate | None

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, *, continuation: bool = False
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def tokenize_messages(
        self, messages: Sequence[Message], add_eos: bool = True
    ) -> tuple[list[int], list[bool]]: ...

    def files(self) -> list[Path]: ...

    def write_settings(self, directory: Path) -> None: ...
