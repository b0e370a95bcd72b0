"""Secrets on a command line and in a configuration: recognised by their names and by their looks, and left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["MASK", "is_secret_name", "mask_arguments", "mask_looks", "mask_text"]

MASK = "***"
# Words of a name, as they stand between underscores, dots and dashes. `tokens` and `tokenizer` are other words.
_SECRET_WORDS = frozenset(
    ("token", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "apikey")
    + ("credential", "credentials", "auth", "authorization", "bearer", "cookie")
)
_KEY_OF = frozenset(["api", "access", "secret", "private", "account", "auth", "encryption", "signing"])
# Of a vocabulary, not of an account.
_TOKEN_OF = frozenset(
    (
        "bos",
        "eos",
        "pad",
        "unk",
        "mask",
        "sep",
        "cls",
        "special",
        "stop",
        "end",
        "begin",
        "image",
        "new",
        "per",
    )
)
# How the tokens of well-known services look, and what stands before the @ of an address.
_LOOKS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|[sr]k_(?:live|test)_\w{16,}|(?:npm|gsk|r8)_[A-Za-z0-9]{20,}|(?:pypi|nvapi)-[\w-]{16,}|ya29\.[\w-]{20,}"
    r"|[Bb]earer\s+(?=[^\s\d]*\d)[\w.~+/=-]{16,})"
    r"|(?<=://)[^/\s@]+(?=@)"
    r"|(?<=PRIVATE KEY-----)(?:(?!-----)[\s\S]){1,20000}(?=-----END )"
)
# What follows a secret name within a longer text: `token=...`, `"api_key": "..."`.
_NAMED = re.compile(
    r"""(?P<name>[A-Za-z_][\w.-]{0,99})(?P<by>["']?\s*[=:]\s*)"""
    r"""(?P<value>"[^"]*"|'[^']*'|(?:(?:[Bb]earer|[Bb]asic|[Tt]oken)\s+)?[^\s,;{}\[\]()"']+)"""
)


def is_secret_name(name: str) -> bool:
    """Tell whether a parameter of this name holds what nobody else is to read: hf_token, wandb.api_key, password."""
    words = [
        word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if word
    ]
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if word == "key" and before in _KEY_OF:
            return True
        if word in _SECRET_WORDS and not (word == "token" and before in _TOKEN_OF):
            return True
    return False


def mask_text(text: str) -> str:
    """Return `text` with `***` for what looks like a secret, and for what a secret name is given in it."""

    def mask(found: re.Match[str]) -> str:
        return f"{found['name']}{found['by']}{MASK}" if is_secret_name(found["name"]) else found.group()

    return mask_looks(_NAMED.sub(mask, text))


def mask_looks(text: str) -> str:
    """Return `text` with `***` for what looks like a token of a well-known service."""
    return _LOOKS.sub(MASK, text)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with `***` for the values of secret names (`token=x`, `--token x`), and what looks so."""
    shown: list[str] = []
    hides_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hides_next and not argument.startswith("-"):
            shown.append(MASK)
        elif equals and is_secret_name(name.lstrip("-")):
            shown.append(f"{name}={MASK}")
        else:
            shown.append(mask_text(argument))
        hides_next = argument.startswith("-") and not equals and is_secret_name(argument.lstrip("-"))
    return shown
