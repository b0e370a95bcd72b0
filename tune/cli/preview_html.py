"""`tune preview --html`: one page with the examples, that needs no network and runs no scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import UsageError
from tune.errors import TuneError
from tune.utils.escape import escape_lines
from tune.utils.paths import expand_path

if TYPE_CHECKING:
    from tune.data.preview import PreviewToken
    from tune.datasets.preview import ShownDataset

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
body { color: #222; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.6 ui-monospace, monospace }
.example { border: 1px solid #ccc; border-radius: 4px; padding: 0.6em 1em; margin: 1em 0 }
.special { border: 1px solid #888; border-radius: 3px; padding: 0 2px; color: #555 }
.learnt { text-decoration: underline; background: #a6e3a1 }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_OURS = '<meta name="generator" content="tune preview">'
_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
{_OURS}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{_HASH}'">
<title>tune preview</title><style>{_STYLE}</style></head><body><h1>What the data teaches</h1>
<p><span class="learnt">learnt</span>, after its weight if that is not 1; <span class="special">special token</span>;
⏎ line end. <code>tune preview --ids</code> shows each token with its place and id.</p>
"""


def check_html_file(name: str, force: bool) -> Path:
    """Return the file to write, which is new, or an earlier page of this command, or overwritten on purpose.

    Raises:
        UsageError: it is none of these, or no file can be there.
    """
    path = expand_path(name)
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: give a file, in a folder that is there")
        if os.path.lexists(path) and not force and not _is_ours(path):
            raise UsageError(f"{path} exists already and is no page of tune preview; --force overwrites it")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _OURS.encode() in stream.read(400)


def html_span(text: str, token: PreviewToken) -> str:
    """Return a text as the page shows tokens of that kind."""
    classes = ["special"] * token.is_special + ["learnt"] * token.is_learnt
    return f'<span class="{" ".join(classes)}">{escape(text)}</span>'


def write_html(
    path: Path, sections: Iterable[tuple[ShownDataset, Iterable[tuple[str, str]]]], force: bool
) -> None:
    """Write the page, whole or not at all: each dataset, with the titles of its examples and their texts as HTML.

    Raises:
        UsageError: as `check_html_file`.
        TuneError: it cannot be written.
    """
    from tune.checkpoints.writers import replacing

    check_html_file(str(path), force)  # reading the data may have taken a while
    parts = [_HEAD]
    for dataset, examples in sections:
        parts.append(f"<h2>{_text(dataset.name)}</h2>\n<pre>{_text(dataset.report_text())}</pre>\n")
        parts += [
            f'<div class="example"><b>{_text(title)}</b><pre>{text}</pre></div>\n' for title, text in examples
        ]
    try:
        with replacing(path) as staged:
            staged.write_text("".join([*parts, "</body></html>\n"]), encoding="utf-8")
    except OSError as error:
        raise TuneError(f"{path} cannot be written: {error.strerror}") from error


def _text(text: str) -> str:
    return escape(escape_lines(text))
