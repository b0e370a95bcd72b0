"""Continue text: the prompt in, pieces of text out as they become certain, stop strings honoured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated, Self, Unpack, cast

from tune.errors import GenerationError
from tune.generation.decode import StopReason, TokenStream, stream_batch
from tune.generation.sampling import DecodingSettings
from tune.modules import TransformerDecoder
from tune.tokenizers import StreamDecoder, Tokenizer
from tune.utils.settings import Setting, takes_settings

__all__ = ["StopStrings", "TextStream", "generate_text", "generate_texts", "stream_text", "stream_texts"]


class StopStrings:
    """Cuts a text that arrives in pieces at the first occurrence of any of ``stops``.

    What could still turn out to be the beginning of a stop string is held back, so nothing that `push` returned ever
    has to be taken back.

    Args:
        stops: The strings; none may be empty. Where two begin at the same place it does not matter which matched.

    Attributes:
        found: Whether a stop string has been met; from then on `push` returns nothing.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise GenerationError(
                "a stop string is empty: it would end every answer before its first character."
            )
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece and return what is certain to stand before any stop string."""
        if self.found:
            return ""
        self._held += text
        hits = [index for index in map(self._held.find, self._stops) if index >= 0]
        # An earlier start may still be undecided (stops "abcd" and "c", text "abc"): then wait for it.
        undecided = len(self._held) - self._longest_beginning()
        if hits and min(hits) <= undecided:
            self.found = True
            certain, self._held = self._held[: min(hits)], ""
            return certain
        certain, self._held = self._held[:undecided], self._held[undecided:]
        return certain

    def finish(self) -> str:
        """Return what was held back: no more text comes, so no stop string can complete."""
        hits = [index for index in map(self._held.find, self._stops) if index >= 0]
        self.found = self.found or bool(hits)
        certain, self._held = self._held[: min(hits, default=len(self._held))], ""
        return certain

    def _longest_beginning(self) -> int:
        """Return the length of the longest end of the held text that begins, but does not complete, a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(len(stop) > length and stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class TextSettings(DecodingSettings, total=False):
    """How a text is continued: those of its tokens, and where it ends."""

    stop: Annotated[Sequence[str], Setting((), "Strings that end the text and are not part of it.")]
    ignore_eos: Annotated[bool, Setting(False, "Go on past all stop ids (they leave no text).")]


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
    decoding = cast(DecodingSettings, settings)
    decoding["stop_ids"] = () if ignore_eos else sorted({*tokenizer.stop_ids, *decoding["stop_ids"]})
    tokens = stream_batch(model, ids, max_new_tokens=max_new_tokens, batch_size=batch_size, **decoding)
    return [TextStream(row, StreamDecoder(tokenizer), StopStrings(stop)) for row in tokens]


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
        stop_reason: None until the end; then ``stop_id``, ``stop_string``, ``max_new_tokens`` or ``max_seq_len``.
    """

    def __init__(self, tokens: TokenStream, decoder: StreamDecoder, stops: StopStrings) -> None:
        self._tokens = tokens
        self._decoder = decoder
        self._stops = stops
        self._pieces = self._run()

    @property
    def num_tokens(self) -> int:
        return self._tokens.num_tokens

    @property
    def stop_reason(self) -> StopReason | None:
        return "stop_string" if self._stops.found else self._tokens.stop_reason

    def _run(self) -> Iterator[str]:
        for token in self._tokens:
            if piece := self._stops.push(self._decoder.push(token)):
                yield piece
            if self._stops.found:
                self._tokens.close()
                return
        if piece := self._stops.push(self._decoder.finish()) + self._stops.finish():
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
