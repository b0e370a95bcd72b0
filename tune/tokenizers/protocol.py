"""What every tokenizer offers, whatever file it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tune.tokenizers.chat_template_render import ChatTemplate
from tune.tokenizers.messages import Message
from tune.tokenizers.templates import AnyTemplate


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocab_size: number of ids the tokenizer can produce, added tokens included.
        bos_id, eos_id, pad_id: ids of the special tokens; `pad_id` is always a valid row of an embedding. A model
            without a BOS gets none, whatever `bos_id` says.
        bos_ids: put before a text where a BOS is asked for; () for models that use none.
        stop_ids: ids that end a generation, `eos_id` among them.
        max_seq_len: tokens after which datasets truncate an example; None for no limit.
        special_tokens: every special token, text to id. They come from text only where that is asked for.
        special_token_names: `bos_token`, `eos_token`, ... as chat templates name them, to their texts.
        prompt_template: how conversations are written, where one was chosen; goes before `chat_template`.
        chat_template: the one that came with the model, or None.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    bos_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    max_seq_len: int | None
    special_tokens: Mapping[str, int]
    special_token_names: dict[str, str]
    prompt_template: AnyTemplate | None
    chat_template: ChatTemplate | None

    def encode(
        self,
        text: str,
        add_bos: bool = True,
        add_eos: bool = True,
        *,
        continuation: bool = False,
        parse_special: bool = False,
    ) -> list[int]: ...

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[int]: ...

    def encode_pieces_with_spans(
        self, pieces: Sequence[str | int]
    ) -> tuple[list[int], list[tuple[int, int]]]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def waits_for_next(self, token_id: int) -> bool: ...

    def tokenize_messages(
        self, messages: Sequence[Message], add_eos: bool = True
    ) -> tuple[list[int], list[bool]]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str | list[int]: ...

    def files(self) -> list[Path]: ...

    def write_settings(self, directory: Path) -> None: ...

    def adopt_chat_template(
        self, template: AnyTemplate, system_prompt: str = "", variables: Mapping[str, Any] | None = None
    ) -> None: ...
