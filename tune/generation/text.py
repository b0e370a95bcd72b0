"""Continue text: the prompt in, pieces of text out as they become certain, stop strings honoured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated, Self, Unpack, cast

from tune.generation.channels import AnswerReader
from tune.generation.decode import StopReason, TokenStream, stream_batch
from tune.generation.sampling import DecodingSettings
from tune.modules import TransformerDecoder
from tune.tokenizers import Tokenizer
from tune.utils.settings import Setting, takes_settings

__all__ = ["TextStream", "generate_text", "generate_texts", "stream_text", "stream_texts"]


class TextSettings(DecodingSettings, total=False):
    """How a text is continued: those of its tokens, and where it ends."""

    stop: Annotated[Sequence[str], Setting((), "Strings that end the text and are not part of it.")]
    ignore_eos: Annotated[bool, Setting(False, "Go on past all stop ids (they leave no text).")]
    show_reasoning: Annotated[
        bool,
        Setting(False, "What is thought in a channel of its own is part of the text, between <think> tags."),
    ]


@takes_settings(TextSettings)
def stream_text(
    model: TransformerDecoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    **settings: Unpack[TextSettings],
) -> TextStream:
    """Return an iterator over the continuation of ``prompt`` in pieces of text, each as soon as it is certain.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer; its stop ids end the text.
        prompt: Text, encoded with a beginning-of-sequence token and no end; or token ids, taken as they are.
        max_new_tokens: As in `generate`.

    Raises:
        GenerationError: As `generate`, or a stop string is empty.
    """
    (pieces,) = stream_texts(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, **settings)
    return pieces


@takes_settings(TextSettings)
def stream_texts(
    model: TransformerDecoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    **settings: Unpack[TextSettings],
) -> list[TextStream]:
    """Return what `stream_text` returns for each prompt; ``batch_size`` of them are generated together."""
    ids = [
        tokenizer.encode(prompt, add_bos=True, add_eos=False) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    stop, ignore_eos = settings.pop("stop"), settings.pop("ignore_eos")
    shown = settings.pop("show_reasoning")
    decoding = cast(DecodingSettings, settings)
    decoding["stop_ids"] = () if ignore_eos else sorted({*tokenizer.stop_ids, *decoding["stop_ids"]})
    rows = stream_batch(model, ids, max_new_tokens=max_new_tokens, batch_size=batch_size, **decoding)
    return [
        TextStream(row, AnswerReader(tokenizer, prompt, stop, show_reasoning=shown))
        for row, prompt in zip(rows, ids, strict=True)
    ]


@takes_settings(TextSettings)
def generate_text(
    model: TransformerDecoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    **settings: Unpack[TextSettings],
) -> str:
    """Return the continuation of ``prompt`` as text; arguments and errors are those of `stream_text`."""
    with stream_text(model, tokenizer, prompt, max_new_tokens=max_new_tokens, **settings) as pieces:
        return "".join(pieces)


@takes_settings(TextSettings)
def generate_texts(
    model: TransformerDecoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    **settings: Unpack[TextSettings],
) -> list[str]:
    """Return what `generate_text` returns for each prompt; ``batch_size`` of them are generated together."""
    streams = stream_texts(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, **settings
    )
    texts = []
    with ExitStack() as stack:
        for pieces in streams:
            stack.push(pieces)
        for pieces in streams:
            texts.append("".join(pieces))
    return texts


class TextStream(Iterator[str]):
    """The text of one continuation in pieces (never empty), and, once it has ended, why it did.

    Attributes:
        num_tokens: Tokens generated so far, without the stop token.
        reasoning: What was thought so far in a channel of its own.
        stop_reason: None until the end; then ``stop_id``, ``stop_string``, ``max_new_tokens`` or ``max_seq_len``.
    """

    def __init__(self, tokens: TokenStream, reader: AnswerReader) -> None:
        self._tokens = tokens
        self._reader = reader
        self._pieces = self._run()

    @property
    def num_tokens(self) -> int:
        return self._tokens.num_tokens

    @property
    def reasoning(self) -> str:
        return self._reader.reasoning

    @property
    def stop_reason(self) -> StopReason | None:
        return "stop_string" if self._reader.is_stopped else self._tokens.stop_reason

    def _run(self) -> Iterator[str]:
        for token in self._tokens:
            if piece := self._reader.push(token):
                yield piece
            if self._reader.is_stopped:
                self._tokens.close()
                return
        if piece := self._reader.finish():
            yield piece

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Give the model back now; the stream ends here."""
        self._tokens.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
