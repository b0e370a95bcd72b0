"""Text of a generation as it grows, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

_REPLACEMENT = "�"
# Tokens without a text that are kept as context: there may be thousands in a row.
_MAX_SILENT = 16


class StreamDecoder:
    """Joins tokens into text piece by piece: the pieces add up to `tokenizer.decode` of all the tokens.

    A character that spans several tokens (most emoji, rare scripts) is held back until it is whole, so no half
    character ever reaches a terminal. Ids beyond the tokenizer's, from rows that pad a model's vocabulary, leave no
    text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._special = frozenset(tokenizer.special_tokens.values())
        # Tokens already shown that later ones still need as context: a decoder drops the leading space of
        # its input, so a token decoded on its own would lose its space.
        self._context: list[int] = []
        self._context_text = ""
        self._held: list[int] = []
        self._waits = False

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes: often one piece, "" while a character is incomplete."""
        if token_id >= self._tokenizer.vocab_size:
            return ""
        self._held.append(token_id)
        # A token that is left out leaves its neighbours side by side.
        if not (self._skip_special and token_id in self._special):
            self._waits = self._tokenizer.waits_for_next(token_id)
        text = self._text_of_held()
        if self._waits or text.endswith(_REPLACEMENT):
            return ""
        self._commit()
        return text

    def finish(self) -> str:
        """Return the text still held back, invalid bytes as U+FFFD, and starts afresh."""
        text = self._text_of_held() if self._held else ""
        self._context, self._context_text, self._held = [], "", []
        self._waits = False
        return text

    def _text_of_held(self) -> str:
        whole = self._tokenizer.decode([*self._context, *self._held], skip_special=self._skip_special)
        return whole[len(self._context_text) :]

    def _commit(self) -> None:
        # Context must show some text on its own, not special tokens alone, or the next token would again stand
        # at the start.
        if self._tokenizer.decode(self._held, skip_special=True):
            self._context = self._held
        else:
            self._context = [*self._context, *self._held][-_MAX_SILENT:]
        self._context_text = self._tokenizer.decode(self._context, skip_special=self._skip_special)
        self._held = []
