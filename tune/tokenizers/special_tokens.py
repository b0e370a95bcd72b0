"""Which token begins a text, ends it and pads it, from what a model's files say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune.errors import TokenizerError
from tune.tokenizers.settings import TOKEN_NAMES, AddedToken, TokenizerSettings

if TYPE_CHECKING:
    from tune.tokenizers.base import BaseTokenizer

# Looked for only where no file names the token. They mean the same in every model that has them.
_USUAL_EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>")
_USUAL_PAD = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, and their texts by the names that templates use."""

    bos_id: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    names: dict[str, str]


def find_special_tokens(
    tokenizer: BaseTokenizer, settings: TokenizerSettings, bos_id: int | None
) -> SpecialTokens:
    """Return which token begins a text, ends it and pads it.

    Args:
        tokenizer: knows the ids of tokens.
        settings: what stands beside the tokenizer's file.
        bos_id: what the tokenizer itself puts before a text, None for nothing.

    Raises:
        TokenizerError: nothing says what ends a text.
    """
    ids: dict[str, int] = {}
    for role, token in settings.names.items():
        found = None if token is None else tokenizer.token_id(token.content)
        if found is not None and settings.fits(found):
            ids[role] = found
    size, special = tokenizer.vocab_size, set(tokenizer.special_tokens.values())
    for role in ("bos", "eos", "pad"):
        stated = settings.ids.get(f"{role}_token_id")
        # `null` beside the tokenizer says that there is none, whatever the model's configuration keeps; and that
        # may keep the ids of its class's defaults, which are words of this vocabulary.
        if f"{role}_token" not in settings.names and stated in special:
            ids.setdefault(f"{role}_token", stated)
    if "eos_token" not in ids:
        ids["eos_token"] = _usual_eos(tokenizer, settings)
    eos_id = ids["eos_token"]
    if bos_id is not None:
        ids.setdefault("bos_token", bos_id)
    names = {role: tokenizer.token(ids[role]) for role in (*TOKEN_NAMES, *ids) if role in ids}
    unknown = ids.get("unk_token", eos_id)
    usual = (tokenizer.special_tokens.get(text) for text in _USUAL_PAD)
    pads = [ids.get("pad_token"), *usual, unknown, eos_id]
    stops = (eos_id, *(stop for stop in settings.stop_ids if stop < size))
    return SpecialTokens(
        # Never put before a text where there is none; models without one still have the field.
        bos_id=ids.get("bos_token", settings.ids.get("bos_token_id", eos_id)),
        eos_id=eos_id,
        pad_id=next((pad for pad in pads if pad is not None and settings.fits(pad)), 0),
        stop_ids=tuple(dict.fromkeys(stops)),
        names=names,
    )


def find_pad(tokens: Iterable[AddedToken], settings: TokenizerSettings) -> str | None:
    """Return the text of the one of some tokens that is there to pad with, None if none is."""
    texts = {token.content for token in tokens}
    return next((text for text in (settings.name("pad_token"), *_USUAL_PAD) if text in texts), None)


def _usual_eos(tokenizer: BaseTokenizer, settings: TokenizerSettings) -> int:
    found = [tokenizer.special_tokens[text] for text in _USUAL_EOS if text in tokenizer.special_tokens]
    if len(found) == 1:
        return found[0]
    if settings.stop_ids and settings.stop_ids[0] < tokenizer.vocab_size:
        return settings.stop_ids[0]
    raise TokenizerError(
        f"nothing says which token of {tokenizer.path} ends a text ({len(found)} of the usual ones are in it); "
        "put the model's tokenizer_config.json beside it, with its eos_token"
    )
