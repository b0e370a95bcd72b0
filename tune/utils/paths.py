"""Paths: as people write them in configs, and as they stand on the disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import tune
from tune.errors import ConfigError

BUNDLED_PREFIX = "bundled:"
_VARIABLE = re.compile(r"(?:(?<=/)|^)\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def get_recipes_dir() -> Path:
    """Return the folder of the recipes that came with this installation."""
    return (
        Path(tune.__file__).parent / "recipes"
    ).resolve()  # in a clone a link, to where they are read and copied


def expand_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that `text` means.

    `bundled:tiny_llama` is the file or folder of that name that ships with tune (so a config works from any
    working directory), `~` is the home directory, and anything else stands as it is.

    Raises:
        ConfigError: the text holds a NUL, which no file system takes, leads out of the bundled files, or begins with an
            unknown user's home, or holds an environment variable, which nothing fills in here.
    """
    name = os.fspath(text)
    if "\0" in name:
        raise ConfigError(f"the path {name!r} holds a NUL character, which no path can")
    if name.startswith(BUNDLED_PREFIX):
        bundled = get_recipes_dir() / "bundled"
        path = bundled / name.removeprefix(BUNDLED_PREFIX)
        if bundled.resolve() not in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{name} leads out of the files that came with tune, {bundled}")
        return path
    if (variable := _VARIABLE.search(name)) and not os.path.lexists(name):
        filled = "${oc.env:" + (variable[1] or variable[2]) + "}"
        raise ConfigError(
            f"the path {name} holds a variable of the shell, which is not filled in here: write "
            f"{name[: variable.start()]}{filled}{name[variable.end() :]} in a config"
        )
    path = Path(os.path.expanduser(name))
    if path.parts and path.parts[0].startswith("~") and not os.path.lexists(path.parts[0]):
        raise ConfigError(f"the path {name} begins with the home of a user who is not known here")
    return path


def flush(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
