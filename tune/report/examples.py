"""The first examples of a run as HTML, from the text of its preview.txt: what is learnt is seen at once."""

from __future__ import annotations

import re

from tune.report.html import text

__all__ = ["show_examples"]

# The marks of `tune.data.preview.format_example`; where they stand in a text they are spelt out there.
_CLASSES = {"⟦": "learnt", "⟨": "special"}
_ENDS = {"⟧": "learnt", "⟩": "special"}
_MARK = re.compile("([⟦⟧⟨⟩])")
_HEADING = re.compile(r"^--- example (\d+) ---$", re.MULTILINE)
_FIRST_OPEN = 3


def show_examples(preview: str) -> str:
    """Return the examples of a preview as HTML, the first ones open; "" where there are none."""
    pieces = _HEADING.split(preview)[1:]
    parts = []
    for number, example in zip(pieces[::2], pieces[1::2]):
        is_open = " open" if int(number) < _FIRST_OPEN else ""
        body = _mark_up(example.strip("\n"))
        parts.append(f"<details{is_open}><summary>example {int(number)}</summary><pre>{body}</pre></details>")
    if not parts:
        return ""
    note = '<span class="learnt">learnt</span>, <span class="special">special token</span>, ⏎ line end.'
    return f"<p>The first examples as the model reads them: {note}</p>\n" + "\n".join(parts) + "\n"


def _mark_up(example: str) -> str:
    parts: list[str] = []
    opened: list[str] = []
    for piece in _MARK.split(example):
        if piece in _CLASSES:
            opened.append(_CLASSES[piece])
            parts.append(f'<span class="{opened[-1]}">')
        elif piece in _ENDS:
            # A file that was changed by hand may have marks without their fellows.
            if opened and opened[-1] == _ENDS[piece]:
                opened.pop()
                parts.append("</span>")
        else:
            parts.append(text(piece))
    return "".join([*parts, *["</span>"] * len(opened)])
