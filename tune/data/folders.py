"""Folders of data files: which of them belong to a split, told by their names."""

from __future__ import annotations

import re
from pathlib import Path

from tune.data.columns import list_names
from tune.data.rows import KINDS, file_kind
from tune.errors import DataError
from tune.utils.escape import escape_control


def is_saved(folder: Path) -> bool:
    """Return whether `datasets` has saved a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def data_files_of(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file_kind(file) and not _is_hidden(file.relative_to(folder))
    ]
    # Configuration and notes that often stand beside the data.
    return [file for file in files if file.name not in ("dataset_info.json", "dataset_infos.json")]


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return the data files of a folder that belong to a split, by their names or their folders' names."""
    files = data_files_of(folder)
    if not files:
        raise DataError(f"the folder {escape_control(folder)} holds no data files ({', '.join(KINDS)})")
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if set(named) == {""}:
        named = {"train": files}
    wanted = named.get(_SPLIT_ALIASES.get(split, split), [])
    if not wanted:
        known = ", ".join(sorted(name or "(files that name no split)" for name in named))
        raise DataError(f"the folder {escape_control(folder)} has no files of split {split!r}; found {known}")
    kinds = {file_kind(file) for file in wanted}
    if len(kinds) > 1:
        raise DataError(
            f"the folder {escape_control(folder)} mixes kinds of files for split {split!r} "
            f"({list_names([file.name for file in wanted], 6)}); name one file as the source, or use data_files"
        )
    return wanted


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith((".", "__")) for part in relative.parts)


_SPLIT_ALIASES = {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "eval": "test", **_SPLIT_ALIASES}


def _split_of(relative: Path) -> str:
    """Return the split that a file's name, or its folder's, speaks of; "" for none."""
    for part in (relative.name.split(".")[0], *reversed(relative.parts[:-1])):
        for word in re.split(r"[-_. ]", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return ""
