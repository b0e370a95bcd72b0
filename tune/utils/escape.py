"""Text from outside (files, templates, the hub, names of tensors), made fit for a terminal and a log."""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls, marks that turn the direction of writing, separators of lines, byte order marks, lone surrogates.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def escape_control(text: object, limit: int | None = None) -> str:
    r"""Return `text` with what would disturb a terminal spelt out (`\x1b`, `\n`, `\u202e`); other Unicode stays.

    Args:
        text: any text, or an object whose `str()` is meant.
        limit: characters of the result at most; what is longer ends in "...".
    """
    raw = str(text)
    # An escape takes six characters for one at most, so nothing beyond the limit can matter.
    shown = _CONTROL.sub(_spell_out, raw if limit is None else raw[: limit + 1])
    return shown if limit is None or len(shown) <= limit else shown[: max(limit - 3, 0)] + "..."


def escape_lines(text: object) -> str:
    """Return `text` as `escape_control` does, with its line ends and tabs kept: a message of several lines."""
    return "\n".join(
        "\t".join(map(escape_control, line.split("\t")))
        for line in str(text).replace("\r\n", "\n").split("\n")
    )


def escape_invisible(text: str) -> str:
    r"""Return `text` as `escape_control` does, with all else that is not to be seen, or looks like a space, spelt out.

    That is for a look at the text itself, where a zero-width space (`\u200b`) or a space that is none (`\xa0`) matters;
    it takes emoji that are joined apart. The wide space of Chinese and Japanese text stays.
    """
    shown = escape_control(text)
    if shown.isascii():
        return shown
    return "".join(
        letter.encode("unicode_escape").decode() if not letter.isascii() and _is_unseen(letter) else letter
        for letter in shown
    )


def _is_unseen(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] == "C" or (category[0] == "Z" and letter != "\u3000")


def _spell_out(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()
