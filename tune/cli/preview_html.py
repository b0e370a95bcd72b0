"""`tune preview --html`: one page with the examples, that needs no network and runs no scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import UsageError, refuse_blank
from tune.errors import TuneError
from tune.utils.escape import escape_lines
from tune.utils.paths import expand_path

if TYPE_CHECKING:
    from tune.data.preview import PreviewToken
    from tune.datasets.preview import ShownDataset, ShownExample

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
body { color: #222; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.6 ui-monospace, monospace }
.example { border: 1px solid #ccc; border-radius: 4px; padding: 0.6em 1em; margin: 1em 0 }
.special { border: 1px solid #888; border-radius: 3px; padding: 0 2px; color: #555 }
.learnt { text-decoration: underline; background: #a6e3a1 }
.w4 { background: #bfebbb } .w3 { background: #d2f1cf } .w2 { background: #e2f6e0 } .w1 { background: #f1fbf0 }
.end { color: #999 }
.cut { color: #a33 }
hr { border: 0; border-top: 2px dashed #888 }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="tune preview">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{_HASH}'">
<title>tune preview</title><style>{_STYLE}</style></head><body>
"""
_OURS = '<meta name="generator" content="tune preview">'


def check_html_file(name: str, force: bool) -> Path:
    """Return the file to write, which is new, or an earlier page of this command, or overwritten on purpose.

    Raises:
        UsageError: it is none of these, or no file can be there.
    """
    refuse_blank(**{"--html": name})
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


def write_html(path: Path, shown: list[ShownDataset], force: bool) -> None:
    """Write the page, whole or not at all.

    Raises:
        UsageError: as `check_html_file`.
        TuneError: it cannot be written.
    """
    from tune.checkpoints.writers import replacing

    check_html_file(str(path), force)  # reading the data may have taken a while
    try:
        with replacing(path) as staged:
            staged.write_text(_page(shown), encoding="utf-8")
    except OSError as error:
        raise TuneError(f"{path} cannot be written: {error.strerror}") from error


def _page(shown: list[ShownDataset]) -> str:
    legend = (
        '<p><span class="learnt">learnt</span>, paler where it weighs less; <span class="special">special '
        'token</span>; <span class="end">⏎</span> line end. Point at a token for its place and id.</p>'
    )
    parts = [_HEAD, "<h1>What the data teaches</h1>\n", legend]
    for dataset in shown:
        parts.append(f"<h2>{_text(dataset.name)}</h2>\n<pre>{_text(dataset.report_text())}</pre>\n")
        parts += [_example(number, example) for number, example in enumerate(dataset.examples, start=1)]
    return "".join([*parts, "</body></html>\n"])


def _name(name: str | None) -> str:
    return f"<i>{_text(name)}</i>\n" if name else ""


def _example(number: int, example: ShownExample) -> str:
    from tune.data.preview import describe_cut

    names = dict(enumerate(example.names))
    spans, document = [_name(names.get(0))], 0
    for place, token in enumerate(example.preview):
        if token.document != document:
            spans.append(f'<span class="cut">{describe_cut(example.cuts, document)}</span><hr>')
            document = token.document
            spans.append(_name(names.get(document)))
        spans.append(_token(place, token))
    spans.append(f'<span class="cut">{describe_cut(example.cuts, document)}</span>')
    title = _text(f"{number}: {example.describe()}")
    return f'<div class="example"><b>{title}</b><pre>{"".join(spans)}</pre></div>\n'


def _token(place: int, token: PreviewToken) -> str:
    from tune.data.preview import spell_out, text_of

    classes = ["special"] * token.is_special
    if token.is_learnt:
        shade = min(max(round(token.weight * 5), 1), 5)
        classes += ["learnt", f"w{shade}"]
    about = f"place {place}, id {token.token_id}" + (f", weight {token.weight:g}" if token.is_learnt else "")
    text = escape(spell_out(text_of([token]))).replace("⏎", '<span class="end">⏎</span>')
    return f'<span class="{" ".join(classes)}" title="{about}">{text}</span>'


def _text(text: str) -> str:
    return escape(escape_lines(text))
