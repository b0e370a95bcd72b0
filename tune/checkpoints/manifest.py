"""The list of a saved step's files, by which a step that is no longer whole is known.

    OUTPUT_DIR/step_000123/manifest.json    {"version": 1, "step": 123, "files": {NAME: {"bytes": 7, "sha256": "..."}}}

It may have been cut short, changed, or written by a stranger: whatever it holds, reading it ends with a verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from tune.errors import CheckpointError
from tune.utils.paths import flush

__all__ = ["CHANGED_SINCE", "MANIFEST_NAME", "check_files", "check_saved_folder", "write_manifest"]

MANIFEST_NAME = "manifest.json"
_STEP_NAME = re.compile(r"step_(\d{6,})")
# What to say of a file that is not there when it is loaded, a moment after all of them were found whole.
CHANGED_SINCE = (
    "If the step was whole when it was chosen, something else is changing files there; a run that is started again "
    "skips a step that is not."
)
# The manifest of a step of ten thousand files has a megabyte.
_MAX_BYTES = 2**26


def write_manifest(directory: Path, step: int) -> None:
    """Flush every file, then write the manifest, then flush the directories that hold their names."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        flush(path)
        name = path.relative_to(directory).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
    manifest = directory / MANIFEST_NAME
    manifest.write_text(
        json.dumps({"version": 1, "step": step, "files": files}, indent=1) + "\n", encoding="utf-8"
    )
    flush(manifest)
    for folder in [path for path in directory.rglob("*") if path.is_dir()] + [directory]:
        flush(folder)


def check_files(directory: Path, step: int, part: str = "", *, without: Sequence[str] = ()) -> None:
    """Check that every file of a saved step is there as it was written.

    Args:
        directory: of the step, with its manifest.
        step: its number.
        part: only the files below this folder of it, such as "model"; all by default.
        without: patterns of names that are left out, such as "*.safetensors".

    Raises:
        CheckpointError: one is not; the message names the first file that differs and how.
    """
    for name, (num_bytes, digest) in _read_manifest(directory, step).items():
        if part and not name.startswith(f"{part}/"):
            continue
        if any(PurePosixPath(name).match(pattern) for pattern in without):
            continue
        path = directory / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe in its place would be waited for without end
                raise CheckpointError(f"{directory.name}: {name} is no longer a file.")
            if found.st_size != num_bytes:
                raise CheckpointError(
                    f"{directory.name}: {name} has {found.st_size} bytes, {num_bytes} were written."
                )
            if (
                _hash_unchanged_file(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                != digest
            ):
                raise CheckpointError(
                    f"{directory.name}: the content of {name} has changed since it was written."
                )
        except OSError as error:
            raise CheckpointError(f"{directory.name}: {name} cannot be read: {error.strerror}.") from error


def _read_manifest(directory: Path, step: int) -> dict[str, tuple[int, str]]:
    """Return size and checksum of each file by its name in `directory`; each name leads to a place inside."""
    path = directory / MANIFEST_NAME
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise CheckpointError(f"{directory.name}: {MANIFEST_NAME} is not one that tune wrote.")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        files = {str(name): _read_entry(str(name), entry) for name, entry in content["files"].items()}
        of_step = content["step"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory.name}: there is no {MANIFEST_NAME}; it was not finished."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{directory.name}: {MANIFEST_NAME} cannot be read: {error.strerror}."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip()[:200]
        raise CheckpointError(f"{directory.name}: {MANIFEST_NAME} cannot be read ({reason}).") from error
    if type(of_step) is not int or of_step != step:
        raise CheckpointError(
            f"{directory.name}: by its {MANIFEST_NAME} it is step {str(of_step)[:50]}; the folder has another name."
        )
    outside = [name for name in files if not _is_inside(name)]
    if outside or not files:
        wrong = f"names {outside[0][:200]!r}, which is no file of it" if outside else "names no file"
        raise CheckpointError(f"{directory.name}: {MANIFEST_NAME} {wrong}.")
    return files


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands there twice")
    return content


def _read_entry(name: str, entry: Any) -> tuple[int, str]:
    num_bytes, digest = entry["bytes"], entry["sha256"]
    if type(num_bytes) is not int or num_bytes < 0:
        raise ValueError(f"`bytes` of {name[:200]!r} is no number of bytes")
    if not isinstance(digest, str):
        raise ValueError(f"`sha256` of {name[:200]!r} is no checksum")
    return num_bytes, digest


def _is_inside(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a character, which no file system holds
        return False
    path = PurePosixPath(name)
    return "\0" not in name and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def check_saved_folder(folder: Path, without: Sequence[str] = ()) -> None:
    """Check what is read of a saved step outside of its run: the model or adapter in it; other folders pass.

    Reading a file for its checksum takes a second or two per GB, once for each file and process as long as it does not
    change; on one process of each machine.

    Args:
        folder: of files that are about to be read, also through links.
        without: patterns of names that are left out, such as "*.safetensors".

    Raises:
        CheckpointError: a file is not as it was written.
    """
    folder = Path(os.path.realpath(folder))  # which ends where links lead in circles
    step = folder.parent
    match = _STEP_NAME.fullmatch(step.name)
    if os.environ.get("LOCAL_RANK", "0") != "0" or match is None or not (step / MANIFEST_NAME).exists():
        return
    try:
        check_files(step, int(match[1]), folder.name, without=without)
    except CheckpointError as error:
        if isinstance(error.__cause__, PermissionError):
            return  # whoever reads the file itself says so
        raise CheckpointError(
            f"{error} It is not what was saved: take another step. If you have changed it yourself, copy {folder} to a "
            "place of its own and use it there."
        ) from error


@lru_cache(maxsize=4096)
def _hash_unchanged_file(path: Path, *identity: int) -> str:
    """Return the checksum of a file; what tells that it has changed is part of the question."""
    return _hash_file(path)


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
