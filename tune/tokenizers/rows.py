"""Tokens and the rows of a model's embedding: which tokens have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tune.errors import ConfigError
from tune.tokenizers.protocol import Tokenizer

_NUM_SHOWN = 4
_LONGEST_SHOWN = 40


def find_tokens_without_row(tokenizer: Tokenizer, num_rows: int) -> dict[str, int]:
    """Return the tokens that a model has no row for, text to id; a pad token that nothing writes is not among them.

    Many published tokenizers name a pad token that their model has no row for. Another one is padded with here, so
    that it is never read.

    Args:
        tokenizer: the model's.
        num_rows: of the embedding.
    """
    missing = dict(getattr(tokenizer, "tokens_without_row", {}))
    text_of = getattr(tokenizer, "token", str)
    missing |= {text_of(token_id): token_id for token_id in range(num_rows, tokenizer.vocab_size)}
    template = tokenizer.chat_template
    pad: str | None = getattr(tokenizer, "pad_without_row", None)
    if pad is not None and pad in missing and (template is None or pad not in template.source):
        del missing[pad]
    return missing


def require_rows(tokenizer: Tokenizer, num_rows: int) -> None:
    """Refuse a tokenizer with tokens that a model has no row for.

    Args:
        tokenizer: the model's.
        num_rows: of the embedding.

    Raises:
        ConfigError: there are such tokens; the first of them are named.
    """
    if missing := find_tokens_without_row(tokenizer, num_rows):
        raise ConfigError(
            f"the tokenizer has {1 + max(missing.values())} different tokens, but the model knows only {num_rows}: its "
            f"embedding has no row for {show_tokens(missing)}. They would be read as pieces of other text, and other "
            "tools fail on them. In training, tokenizer.add_tokens and tokenizer.add_special_tokens give rows to "
            "all that have none: name one of them there. If the tokenizer is another model's, set "
            "tokenizer_checkpoint to the model's own"
        )


def refuse_dropped_tokens(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose own files say that the model beside them has no row for some of its tokens.

    Raises:
        ConfigError: as `require_rows`.
    """
    num_rows = getattr(tokenizer, "num_rows", None)
    if num_rows is not None and getattr(tokenizer, "dropped_tokens", None):
        require_rows(tokenizer, num_rows)


def note_tokens_without_row(tokenizer: Tokenizer, num_rows: int) -> str:
    """Return what a person should know of the tokens that a model has no row for; "" where there are none."""
    missing = find_tokens_without_row(tokenizer, num_rows)
    if not missing:
        return ""
    return (
        f"the tokenizer has tokens that the model has no row for ({num_rows} rows): {show_tokens(missing)}; other "
        "tools fail on them"
    )


def show_tokens(tokens: Mapping[str, int] | Sequence[str]) -> str:
    """Return the first of some tokens in quotes and escaped, with their ids if they have any, and how many more."""
    shown = []
    for text in list(tokens)[:_NUM_SHOWN]:
        start = ascii(text[:_LONGEST_SHOWN]) + ("..." if len(text) > _LONGEST_SHOWN else "")
        shown.append(f"{start} ({tokens[text]})" if isinstance(tokens, Mapping) else start)
    rest = len(tokens) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
