"""Tokens that a tokenizer gets beyond those in its files, with the ids that transformers' `add_tokens` gives them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tune.errors import TokenizerError
from tune.tokenizers.base import BaseTokenizer
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.rows import show_tokens
from tune.tokenizers.settings import AddedToken, TokenizerSettings
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.tiktoken_bpe import TiktokenTokenizer

_LONGEST = 1000  # characters; what is longer is a text, not a token


def with_new_tokens(
    tokenizer: BaseTokenizer, add_tokens: Sequence[str] | None, add_special_tokens: Sequence[str] | None
) -> BaseTokenizer:
    """Return a tokenizer that knows more tokens: numbered from its last id on, in the order given.

    What it knows already keeps its id. Tokens of its files that the model has no row for are there again: a model that
    is trained with the result gets rows for all of them.

    Args:
        tokenizer: as its files describe it; the result is another object, or the same one where nothing is added.
        add_tokens: texts that become one token each wherever they are written.
        add_special_tokens: control tokens, which templates write; in a text they stay text, and decoding leaves them
            out. One that the tokenizer has as an ordinary token becomes special.

    Raises:
        TokenizerError: a text cannot be a token, or the tokenizer is of a kind that cannot take any.
    """
    ordinary = _checked("add_tokens", add_tokens)
    special = _checked("add_special_tokens", add_special_tokens)
    if both := [text for text in ordinary if text in special]:
        raise TokenizerError(
            f"add_tokens and add_special_tokens both name {show_tokens(both)}: keep one of the two"
        )
    if not ordinary and not special:
        return tokenizer
    extended = tokenizer if isinstance(tokenizer, HFTokenizer) else _as_hf_tokenizer(tokenizer)
    extended.add_tokens(
        [
            *(AddedToken(text) for text in ordinary if text not in extended.special_tokens),
            *(AddedToken(text, special=True, normalized=False) for text in special),
        ]
    )
    extended.may_outgrow_model = True
    return extended


def _checked(argument: str, texts: Sequence[str] | None) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts or ()):
        raise TokenizerError(f"{argument} is a list of texts, such as ['<tool>', '</tool>']")
    for text in texts or ():
        if not text:
            raise TokenizerError(f"{argument} holds an empty text, which cannot be a token")
        if len(text) > _LONGEST:
            raise TokenizerError(
                f"{argument} holds a text of {len(text)} characters, {show_tokens([text])}; a token has {_LONGEST} at "
                "most"
            )
        if not text.isascii() and any(0xD800 <= ord(char) < 0xE000 for char in text):
            raise TokenizerError(
                f"{argument} holds {show_tokens([text])}, which is no text: half of a character that UTF-8 cannot hold"
            )
    return list(dict.fromkeys(texts or ()))


def _as_hf_tokenizer(tokenizer: BaseTokenizer) -> HFTokenizer:
    """Return the tokenizer of the tokenizer.json that is equal to a file of another kind."""
    definition = None
    if isinstance(tokenizer, SentencePieceTokenizer | TiktokenTokenizer):
        definition = tokenizer.as_tokenizer_json()
    if definition is None:
        raise TokenizerError(
            f"{tokenizer.path} cannot take new tokens: there is no tokenizer.json that is equal to it. Save one beside "
            "it with transformers, AutoTokenizer.from_pretrained(...).save_pretrained(...), and name that"
        )
    # The files beside it have been read; what they say is in the tokenizer.
    named = {
        **tokenizer.special_token_names,
        "eos_token": tokenizer.token(tokenizer.eos_id),
        "pad_token": tokenizer.token(tokenizer.pad_id),
    }
    names = {role: AddedToken(text, special=True, normalized=False) for role, text in named.items()}
    extended = HFTokenizer(
        tokenizer.path,
        tokenizer.max_seq_len,
        settings=TokenizerSettings(names=names, stop_ids=tokenizer.stop_ids),
        definition=json.loads(definition),
        add_bos=bool(tokenizer.bos_ids),
    )
    extended.max_seq_len = tokenizer.max_seq_len
    extended.prompt_template, extended.chat_template = tokenizer.prompt_template, tokenizer.chat_template
    extended.dropped_tokens = tokenizer.dropped_tokens
    return extended
