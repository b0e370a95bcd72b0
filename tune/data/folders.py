"""Which files hold the rows: those of a folder that belong to a split, and those that `data_files` names."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from tune.data.columns import list_names
from tune.data.rows import KINDS, file_kind
from tune.errors import ConfigError, DataError
from tune.utils.escape import escape_control
from tune.utils.paths import expand_path

DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]]
_FILE_SCHEME = "file://"
_MAX_FILES = 1_000_000


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


def has_urls(data_files: DataFiles) -> bool:
    """Tell whether some of `data_files` are addresses of the web."""
    if isinstance(data_files, Mapping):
        return any(has_urls(files) for files in data_files.values())
    names = [data_files] if isinstance(data_files, str) else data_files
    return any("://" in name and not name.startswith(_FILE_SCHEME) for name in names)


def _local_path(name: str) -> Path:
    """Return the path that an entry of `data_files` means, which may be an address of this machine."""
    if name.startswith(_FILE_SCHEME):
        return Path(unquote(name.removeprefix(_FILE_SCHEME).removeprefix("localhost")))
    return expand_path(name)


def expand_data_files(data_files: DataFiles, split: str, folder: Path) -> list[Path]:
    """Return the files that `data_files` names for a split, patterns expanded and sorted."""
    if isinstance(data_files, Mapping):
        if split not in data_files:
            raise ConfigError(
                f"dataset.data_files has no split {split!r}, only {', '.join(data_files)}; set dataset.split"
            )
        data_files = data_files[split]
    elif split != "train":
        raise ConfigError(
            f"dataset.split is {split!r}, but data_files that are not named by split are all 'train'; "
            f"write data_files: {{{split}: ...}}"
        )
    files: list[Path] = []
    for name in [data_files] if isinstance(data_files, str) else data_files:
        path = folder / _local_path(name)
        if not any(mark in name for mark in "*?[") or path.is_file():
            files.append(path)
            continue
        found = glob.iglob(str(path), recursive=True)
        matches = sorted(Path(match) for match in islice(found, _MAX_FILES + 1))
        if not matches:
            raise DataError(f"no file matches {escape_control(path)}")
        if len(matches) > _MAX_FILES:
            raise DataError(
                f"more than {_MAX_FILES:,} files match {escape_control(path)}, the most that one dataset may have; put "
                "them together into fewer files"
            )
        files += matches
    return files
