"""Paths: as people write them in configs, and as they stand on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import tune
from tune.errors import ConfigError

BUNDLED_PREFIX = "bundled:"


def get_recipes_dir() -> Path:
    """Return the folder of the recipes that came with this installation."""
    return Path(tune.__file__).resolve().parent.parent / "recipes"


def expand_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that `text` means.

    `bundled:tiny_llama` is the file or folder of that name that ships with tune (so a config works from any
    working directory), `~` is the home directory, and anything else stands as it is.

    Raises:
        ConfigError: the text holds a NUL, which no file system takes.
    """
    name = os.fspath(text)
    if "\0" in name:
        raise ConfigError(f"the path {name!r} holds a NUL character, which no path can")
    if name.startswith(BUNDLED_PREFIX):
        return get_recipes_dir() / "bundled" / name.removeprefix(BUNDLED_PREFIX)
    return Path(os.path.expanduser(name))  # leaves the ~ of an unknown user as it is, where pathlib raises


def flush(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
