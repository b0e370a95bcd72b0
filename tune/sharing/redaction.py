"""Taking private values out of files, however they are spelt there."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from tune.utils.escape import escape_control
from tune.utils.secret_masking import MASK, is_secret_name, mask_text

__all__ = ["PLACEHOLDER", "Private", "Redactor", "placeholder"]

# Letters that mean themselves in YAML, JSON, HTML and a sentence, so that one form serves all files.
PLACEHOLDER = re.compile(r"REDACTED\(([\w.-]+)\)")
_STRANGE = re.compile(r"[^\w.-]")
# How one text may stand within another: written by Python, a browser's page, a shell, an address.
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1].replace("<", "\\u003c"),
    lambda text: repr(text)[1:-1],
    lambda text: shlex.quote(text),
    lambda text: escape(text),
    lambda text: escape(text, quote=False),
    lambda text: quote(text),
    lambda text: quote(text, safe=""),
    escape_control,
)
# A word begins at no letter, unless what stands before is an escape: \n, %2F
_BEFORE_WORD = r"(?:(?<![^\W_])|(?<=\\[nrtfb])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_AFTER_WORD = r"(?![^\W_])"


@dataclass(frozen=True)
class Private:
    """A text that is to be gone.

    Args:
        text: as it was first found.
        name: what is said in its place: the key it is the value of, or its kind.
        is_word: it is replaced only where it stands as a word of its own, in any case of its letters.
    """

    text: str
    name: str
    is_word: bool = False


def placeholder(name: str) -> str:
    """Return what stands in the place of the value called `name`."""
    return f"REDACTED({_STRANGE.sub('_', name)})"


class Redactor:
    """Replaces private texts in others, in each of their spellings.

    Args:
        private: what is to be gone; of two that overlap the longer one goes as a whole.
        keys: dotted names of settings whose values go wherever they stand beside their key.

    Attributes:
        counts: how often each name's value was replaced.
    """

    def __init__(self, private: Iterable[Private], keys: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self._words: dict[str, str] = {}
        for item in private:
            for spelling in _spellings(item.text):
                if item.is_word:
                    self._words.setdefault(spelling.lower(), item.name)
                else:
                    self._names.setdefault(spelling, item.name)
        whole, words = _any_of(self._names), _any_of(self._words)
        parts = [whole] if whole else []
        parts += [f"{_BEFORE_WORD}(?i:{words}){_AFTER_WORD}"] if words else []
        self._pattern = re.compile("|".join(parts)) if parts else None
        self._keys = tuple(dict.fromkeys(keys))
        self._settings = [_setting_pattern(key) for key in self._keys]

    def redact(self, text: str) -> str:
        """Return `text` without what is private."""
        # Whole texts first: a setting on a command line seems to end at the first space of its value.
        if self._pattern is not None:
            text = self._pattern.sub(self._replace, text)
        for key, pattern in zip(self._keys, self._settings):
            text = pattern.sub(lambda found, key=key: self._replace_setting(found, key), text)  # type: ignore[misc]
        return text

    def redact_json(self, value: Any, name: str = "") -> Any:
        """Return a value as JSON has it, with what is private gone from its texts; names of fields stay."""
        if isinstance(value, dict):
            return {key: self.redact_json(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.redact_json(item, name) for item in value]
        key = next((key for key in self._keys if name and key.rpartition(".")[2] == name), None)
        if key is not None and value is not None:
            self.counts[key] += 1
            return placeholder(key)
        if not isinstance(value, str):
            return value
        return MASK if is_secret_name(name) and value else mask_text(self.redact(value))

    def finds(self, content: bytes) -> bool:
        """Tell whether bytes that are no text hold something private; a single word proves nothing there."""
        return any(name.encode("utf-8", errors="surrogateescape") in content for name in self._names)

    def _replace(self, found: re.Match[str]) -> str:
        name = self._names.get(found[0]) or self._words[found[0].lower()]
        self.counts[name] += 1
        return placeholder(name)

    def _replace_setting(self, found: re.Match[str], key: str) -> str:
        if PLACEHOLDER.fullmatch(found["value"].strip("\"'")):
            return found.group()
        self.counts[key] += 1
        return found["before"] + placeholder(key)


def _setting_pattern(key: str) -> re.Pattern[str]:
    """Return what finds `key=value` and `key: value`."""
    last = re.escape(key)
    return re.compile(
        rf"(?P<before>(?<![\w.]){last}[\"']?\s*[=:]\s*)(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;}}\]\"'&<]+)"
    )


def _spellings(text: str) -> list[str]:
    """Return a text as it stands, and as up to two programs in a row may have written it."""
    once = [spell(text) for spell in _SPELLINGS]
    twice = [spell(written) for written in once for spell in (_SPELLINGS[0], escape)]
    return [each for each in dict.fromkeys((text, *once, *twice)) if each]


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern that finds the longest of `texts`, in a time that does not grow with their number."""
    root: dict[str, Any] = {}
    for text in texts:
        node = root
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _render(root)


def _render(node: dict[str, Any]) -> str:
    branches = []
    for letter, child in node.items():
        written = re.escape(letter)
        while len(child) == 1 and "" not in child:
            ((letter, child),) = child.items()
            written += re.escape(letter)
        if letter:
            branches.append(written + _render(child))
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + "?" * ("" in node)
