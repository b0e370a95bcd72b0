"""Unicode's composed form (NFC) of a text, and which characters became which."""

from __future__ import annotations

import unicodedata

Span = tuple[int, int]


def nfc_with_offsets(text: str) -> tuple[str, list[Span]]:
    """Return a text in NFC and, for each character of it, the characters [start, end) of `text` it stands for."""
    if unicodedata.is_normalized("NFC", text):
        return text, [(index, index + 1) for index in range(len(text))]
    parts: list[str] = []
    places: list[Span] = []
    start = 0
    while start < len(text):
        end = start + 1
        composed = unicodedata.normalize("NFC", text[start])
        # A group ends before a character that neither is a mark nor joins what stands before it.
        while end < len(text):
            longer = unicodedata.normalize("NFC", text[start : end + 1])
            if not unicodedata.combining(text[end]):
                apart = composed + unicodedata.normalize("NFC", text[end])
                if longer == apart:
                    break
            composed = longer
            end += 1
        parts.append(composed)
        places += [(start, end)] * len(composed)
        start = end
    return "".join(parts), places
