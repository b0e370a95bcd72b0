"""Friendly names of models, from `short_names.toml`, and the hub repositories they and addresses stand for."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tune.errors import HubError

# family: {short name: owner/name}
SHORT_NAMES: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
_REPOSITORIES = {short: repo for family in SHORT_NAMES.values() for short, repo in family.items()}

# What the hub allows: a letter or digit at both ends; dots, dashes and underscores between, but no "--" and no "..".
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def repository_of(name: str, endpoint: str = "") -> tuple[str, str | None]:
    """Return the hub repository that `name` means, and the revision if the name holds one.

    Args:
        name: a short name, "owner/name", or the address of the model's page.
        endpoint: address of the hub in use, whose pages are understood too.

    Raises:
        HubError: it is none of these; the message suggests the nearest.
    """
    text = name.strip()
    if text.casefold() in _REPOSITORIES:
        return _REPOSITORIES[text.casefold()], None
    revision = None
    if text.partition("/")[0] in _HUB_HOSTS:
        text = "https://" + text
    if "://" in text:
        text, revision = _read_address(text, endpoint)
    if is_repository(text):
        return text, revision
    close = nearest_names(name.rsplit("/", 1)[-1])
    if close:
        meant = ", ".join(f"{short} ({_REPOSITORIES[short]})" for short in close)
        raise HubError(f"{name!r} names no model; did you mean {meant}?")
    raise HubError(
        f"{name!r} names no model: give owner/name as on the model's page (meta-llama/Llama-3.2-1B), the address of "
        "that page, or a short name of `tune download --help`"
    )


def is_repository(text: str) -> bool:
    """Tell whether `text` has the form "owner/name" of a hub repository."""
    return _REPOSITORY.fullmatch(text) is not None


def nearest_names(word: str, count: int = 3) -> list[str]:
    """Return the short names closest to `word`, the nearest first."""
    folded = {_fold(short): short for short in _REPOSITORIES}
    found = difflib.get_close_matches(_fold(word), folded, n=count, cutoff=0.7)
    starts = [short for key, short in folded.items() if len(word) > 2 and key.startswith(_fold(word))]
    return list(dict.fromkeys([*(folded[key] for key in found), *sorted(starts, key=len)]))[:count]


def _fold(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum() or letter == ".")


def _read_address(text: str, endpoint: str) -> tuple[str, str | None]:
    """Return owner/name and revision out of a page's address; other text comes back as it is."""
    try:
        address = urlsplit(text)
        own = urlsplit(endpoint).netloc
    except ValueError:
        return text, None
    if address.scheme not in ("http", "https") or address.netloc not in {*_HUB_HOSTS, own} - {""}:
        return text, None
    parts = [unquote(part) for part in address.path.split("/") if part]
    if parts[:1] in (["datasets"], ["spaces"]):
        raise HubError(f"{text} is the page of a {parts[0].removesuffix('s')}, not of a model")
    revision = parts[3] if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve", "commit") else None
    return "/".join(parts[:2]), revision
