"""The entries of the cache of tokenized data as they lie on the disk: read, listed, and removed where they are ours.

What has not the names and the mark of an entry is left alone, and no link is followed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.data.cache_locks import UnusableError, locked
from tune.data.store import PARTS

ENTRY = "entry.json"
NAMES = {ENTRY, *PARTS}
MARK = "tune data cache 1"
_KEY = re.compile(r"[0-9a-f]{40}")
_LEFT = re.compile(r"([0-9a-f]{40}(?:\.digest)?)\.(?:partial|lock)")
_MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class CacheEntry:
    """One tokenized data set.

    Args:
        key: says what decided about its tokens.
        source: what it was made of, for people.
        num_bytes: on the disk.
        num_examples: in it.
        used: when it was used last, in seconds since 1970.
        in_use: a process has it mapped.
    """

    key: str
    source: str
    num_bytes: int
    num_examples: int
    used: float
    in_use: bool


def list_entries(root: Path) -> list[CacheEntry]:
    """Return the entries in a folder, the last used first."""
    try:
        found = [entry for entry in os.scandir(root) if _KEY.fullmatch(entry.name)]
    except OSError:
        return []
    described = (_describe(Path(entry.path)) for entry in found)
    return sorted((entry for entry in described if entry), key=lambda entry: -entry.used)


def read_entry(folder: Path) -> dict[str, Any]:
    """Return what an entry says of itself. Raises OSError or ValueError where it is none of ours, or damaged."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise ValueError("it is no folder")
    path = folder / ENTRY
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise ValueError(f"its {ENTRY} is not one that tune wrote")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        is_ours = entry.pop("sha256") == _checksum(entry)
        is_ours = is_ours and (entry["format"], entry["key"]) == (MARK, folder.name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"its {ENTRY} is not what tune wrote for it")
    return dict(entry)


def write_entry(folder: Path, entry: dict[str, Any]) -> None:
    """Write what an entry says of itself."""
    text = json.dumps(entry | {"sha256": _checksum(entry)})
    (folder / ENTRY).write_text(text, encoding="utf-8")


def remove_entry(root: Path, key: str) -> bool:
    """Remove an entry that is not in use; return whether it is gone."""
    folder = root / key
    with suppress(OSError, ValueError):
        read_entry(folder)
        with open(folder / PARTS[0], "r+b") as tokens:
            fcntl.flock(tokens, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return remove_folder(folder)
    return False


def remove_leftovers(root: Path) -> None:
    """Remove what processes have left that were killed while they wrote."""
    with suppress(OSError):
        names = {match[1] for entry in os.scandir(root) if (match := _LEFT.fullmatch(entry.name))}
        for name in names:
            with suppress(UnusableError), locked(root, name, wait=False) as is_ours:
                if is_ours and _KEY.fullmatch(name):
                    remove_folder(root / f"{name}.partial")


def remove_folder(folder: Path) -> bool:
    """Remove a folder of the cache, unless something else has come into it; return whether it is gone."""
    with suppress(OSError):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        names = sorted(
            os.listdir(folder), key=lambda name: name != ENTRY
        )  # without it, it is no entry any more
        if not NAMES.issuperset(names):
            return False
        for name in names:
            os.unlink(folder / name)
        folder.rmdir()
        return True
    return not os.path.lexists(folder)


def _describe(folder: Path) -> CacheEntry | None:
    try:
        entry = read_entry(folder)
        num_bytes = sum((folder / name).lstat().st_size for name in NAMES)
        used = (folder / ENTRY).lstat().st_mtime
    except (OSError, ValueError):
        return None
    num_examples = entry["report"]["num_examples"]
    return CacheEntry(folder.name, entry["source"], num_bytes, num_examples, used, _is_in_use(folder))


def _is_in_use(folder: Path) -> bool:
    try:
        with open(folder / PARTS[0], "r+b") as tokens:
            fcntl.flock(tokens, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # as far as anybody can tell who may not write there
    return False


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
