"""How a shared run gets its name: whole, or not at all, and never in place of something else."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tune.errors import TuneError

MANIFEST = "manifest.json"


def write_zip(folder: Path, path: Path) -> Path:
    """Write a folder as a zip, and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target, gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def require_free(target: Path, force: bool) -> None:
    """Raise TuneError where something stands that may not be replaced."""
    if not os.path.lexists(target):
        return
    if not force:
        raise TuneError(f"{target} exists already; --force replaces it, --to writes elsewhere")
    is_ours = (target / MANIFEST).is_file() if target.is_dir() else zipfile.is_zipfile(target)
    if target.is_symlink() or not is_ours:
        raise TuneError(
            f"{target} was not written by tune share, so it is left as it is; write elsewhere with --to"
        )


def put_in_place(staged: dict[Path, Path], place: Path) -> None:
    """Give what is whole its names; a folder that is replaced is kept aside until then."""
    for target, path in staged.items():
        if target.is_dir() and not target.is_symlink():
            os.rename(target, place / ".replaced")
        os.rename(path, target)
