"""Checksums of data files, noted in the cache so that files which have not changed are not read again.

Names, sizes, numbers and times tell whether they have. A program can set back the time of the last change, but not the
one that the system keeps beside it, so a file that is written anew is seen to be another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tune.data.cache_locks import UnusableError, locked

FOLDER = "digests"
_NAME = re.compile(r"[0-9a-f]{40}")
# A file that changed so shortly before it was read may change once more without a later time.
_SETTLED_S = 2.0
_MAX_NOTES = 10_000


def digest_files(root: Path, files: Sequence[Path]) -> str:
    """Return the checksum of the content of files, in their order.

    Args:
        root: of the cache.
        files: read, unless it is noted what they hold.

    Raises:
        OSError: one cannot be read.
    """
    facts, newest = _facts_of(files)
    note = root / FOLDER / hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    if (known := _read_note(note)) is not None:
        return known
    with suppress(UnusableError), locked(root, f"{note.name}.digest"):
        if (known := _read_note(note)) is not None:
            return known
        digest = _read_files(files)
        if time.time() - newest > _SETTLED_S and _facts_of(files)[0] == facts:
            _write_note(note, digest)
        return digest
    return _read_files(files)


def remove_notes(root: Path, keep: int = _MAX_NOTES) -> None:
    """Remove all notes but the newest `keep`."""
    folder = root / FOLDER
    with suppress(OSError):
        if folder.is_symlink():
            return
        notes = [
            Path(entry.path)
            for entry in os.scandir(folder)
            if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
        notes.sort(key=lambda note: -note.lstat().st_mtime)
        for note in notes[keep:]:
            note.unlink(missing_ok=True)
        if not keep:
            folder.rmdir()


def _facts_of(files: Sequence[Path]) -> tuple[str, float]:
    """Return what changes when the content of files does, and when the last of them changed."""
    facts: list[object] = [os.getcwd()]
    newest = 0.0
    for file in files:
        found = file.stat()
        times = (found.st_mtime_ns, found.st_ctime_ns)
        facts.append((str(file), found.st_size, *times, found.st_ino, found.st_dev))
        newest = max(newest, found.st_mtime, found.st_ctime)
    return json.dumps(facts), newest


def _read_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _read_note(note: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        text = note.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return text
    return None


def _write_note(note: Path, digest: str) -> None:
    with suppress(OSError):
        note.parent.mkdir(exist_ok=True)
        staged = note.with_name(f"{note.name}.{os.getpid()}")
        staged.write_text(digest, encoding="ascii")
        os.replace(staged, note)
