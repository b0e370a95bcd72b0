"""Getting a configuration's text: bounded, decoded, without what a YAML reader must not see."""

from __future__ import annotations

import codecs
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tune.config.diagnostics import Diagnostic, Source

MAX_BYTES = 1 << 20
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_names: dict[str, str] = {}
_BLANKS = str.maketrans("", "", "\t\n\r")


@dataclass
class Text:
    """A configuration's text, and what was wrong with it as text: with a problem it is not read further."""

    name: str
    content: str = ""
    problems: list[Diagnostic] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The text as it is shown in messages."""
        return split_lines(self.content)


def split_lines(text: str) -> list[str]:
    """Split at the line breaks that YAML 1.1 knows, which are those that libyaml counts."""
    return _LINE_BREAK.split(text)


@contextmanager
def called(path: str | os.PathLike[str], name: str) -> Iterator[None]:
    """In here messages call a file by the name that its user knows, such as that of the archive it came in."""
    _names[os.fspath(path)] = name
    try:
        yield
    finally:
        del _names[os.fspath(path)]


def name_of(path: str | os.PathLike[str]) -> str:
    """Return what messages call a file."""
    return _names.get(os.fspath(path), os.fspath(path))


def read_file(path: str | os.PathLike[str]) -> Text:
    """Read a configuration file; never more than `MAX_BYTES`, whatever it is."""
    name = name_of(path)
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return _unreadable(name, "config-not-found", "there is no such file")
    except IsADirectoryError:
        return _unreadable(name, "config-unreadable", "this is a folder, not a configuration file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return _unreadable(name, "config-unreadable", f"it cannot be read: {reason}")
    return decode(data, name)


def decode(data: bytes, name: str) -> Text:
    """Decode UTF-8 (with or without a byte order mark); everything else is reported with its place."""
    if len(data) > MAX_BYTES:
        return _unreadable(
            name, "config-too-large", f"it is larger than {MAX_BYTES:,} bytes, the most that is read"
        )
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    wide = _wide_encoding(data)
    if wide:
        return _unreadable(name, "bad-encoding", f"it is encoded as {wide}; save it as UTF-8")
    try:
        return clean(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        rows = split_lines(before)
        place = Source("file", name, len(rows), len(rows[-1]) + 1)
        byte = data[error.start]
        guess = bytes([byte]).decode("latin-1")
        message = f"byte 0x{byte:02x} is not UTF-8"
        if guess.isprintable():
            message += f" (in Latin-1 it would be {guess})"
        problem = Diagnostic("bad-encoding", "", f"{message}; save the file as UTF-8", place)
        return Text(name, data.decode("utf-8", errors="replace"), [problem])


def clean(content: str, name: str) -> Text:
    """Report the first of the characters that YAML does not allow."""
    content = content.removeprefix("\ufeff")
    if len(content) > MAX_BYTES:
        return _unreadable(
            name, "config-too-large", f"it is longer than {MAX_BYTES:,} characters, the most that is read"
        )
    text = Text(name, content)
    if content.translate(_BLANKS).isprintable():
        return text
    found = _not_yaml().search(content)
    if found:
        rows = split_lines(content[: found.start()])
        place = Source("file", name, len(rows), len(rows[-1]) + 1)
        count = len(_not_yaml().findall(content))
        more = f" (and {count - 1} more such)" if count > 1 else ""
        code = f"U+{ord(found.group()):04X}"
        what = "the NUL character" if code == "U+0000" else f"the character {code}"
        text.problems.append(
            Diagnostic("bad-encoding", "", f"{what} is not allowed in YAML{more}; remove it", place)
        )
    return text


@functools.cache
def _not_yaml() -> re.Pattern[str]:
    """What YAML does not allow in a text; compiled only for a text that has odd characters at all."""
    return re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _wide_encoding(data: bytes) -> str | None:
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if data.startswith(mark):
            return encoding
    head = data[:64]
    # Text of mostly ASCII in two bytes a character: every other byte is zero.
    if len(head) >= 4 and (not any(head[1::2]) or not any(head[0::2])):
        return "UTF-16"
    return None


def _unreadable(name: str, code: str, reason: str) -> Text:
    problem = Diagnostic(code, "", f"{name}: {reason}", Source("file", name))
    return Text(name, problems=[problem])
