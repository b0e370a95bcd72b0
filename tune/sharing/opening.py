"""Opening a shared run: nothing in it is believed before its names, sizes and checksums are those of its manifest."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tune.errors import TuneError
from tune.sharing.bundle import MANIFEST, MAX_BYTES, VERSION
from tune.sharing.private import Leaf, read_leaves
from tune.sharing.redaction import PLACEHOLDER

__all__ = ["OpenedRun", "is_shared", "open_shared"]

_MAX_FILES = 1000
_MAX_MANIFEST = 4_000_000
_CHUNK = 1 << 20
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError)
_NAME = re.compile(r"[^\x00-\x1f\\:*?\"<>|]{1,255}\Z")


@dataclass(frozen=True)
class OpenedRun:
    """A shared run whose files are as they were written.

    Args:
        folder: with its files.
        name: as it was called.
        manifest: what is known of it besides.
        record: its run.json.
        leaves: the values of its config.
    """

    folder: Path
    name: str
    manifest: Mapping[str, Any]
    record: Mapping[str, Any]
    leaves: tuple[Leaf, ...]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def recipe(self) -> Path | None:
        """The recipe's file; None where it was not shared."""
        file = self.manifest["recipe"].get("file")
        return self.folder / file if file else None

    @property
    def missing(self) -> list[Leaf]:
        """The values that were left out."""
        return [leaf for leaf in self.leaves if PLACEHOLDER.search(leaf.value)]


def is_shared(path: str) -> bool:
    """Tell whether `path` is what `tune share` writes, or a zip that may be."""
    if os.path.isfile(path):
        return path.lower().endswith(".zip")
    manifest = os.path.join(path, MANIFEST)
    if not os.path.isfile(manifest) or os.path.getsize(manifest) > _MAX_MANIFEST:
        return False
    with open(manifest, "rb") as stream:
        return b'"tune_share"' in stream.read(200)


def open_shared(path: Path, into: Path) -> OpenedRun:
    """Return the run in a folder or zip, its files copied to `into`, which does not exist yet.

    Raises:
        TuneError: it is not what `tune share` wrote, or was changed, cut short, or made to do harm.
    """
    try:
        with _zip_files(path) if path.is_file() else _folder_files(path) as files:
            return _copy_checked(path, files, into)
    except (OSError, *_BROKEN_ZIP, EOFError, ValueError) as error:
        raise TuneError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error


@dataclass(frozen=True)
class _File:
    """One file, unread: its size as it says, and what opens it."""

    size: int
    open: Any


@contextmanager
def _zip_files(path: Path) -> Iterator[dict[str, _File]]:
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        roots = {info.filename.partition("/")[0] for info in entries}
        if len(entries) > _MAX_FILES or len(roots) != 1:
            raise TuneError(
                f"{path} is not what tune share writes: {len(entries)} files in {len(roots)} folders"
            )
        files: dict[str, _File] = {}
        for info in entries:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
                raise TuneError(f"{path}: {info.filename[:200]!r} is a link, encrypted, or no plain file")
            name = info.filename.partition("/")[2]
            if name in files:
                raise TuneError(f"{path} holds {name[:200]!r} twice")
            files[name] = _File(info.file_size, lambda info=info: archive.open(info))
        yield files


@contextmanager
def _folder_files(path: Path) -> Iterator[dict[str, _File]]:
    files: dict[str, _File] = {}
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if name != "__pycache__"]
        for name in (*names, *(name for name in inner if os.path.islink(os.path.join(folder, name)))):
            file = Path(folder, name)
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise TuneError(f"{file} is a link, or no plain file")
            files[file.relative_to(path).as_posix()] = _File(found.st_size, lambda file=file: file.open("rb"))
            if len(files) > _MAX_FILES:
                raise TuneError(f"{path} is not what tune share writes: it has more than {_MAX_FILES} files")
    yield files


def _copy_checked(path: Path, files: Mapping[str, _File], into: Path) -> OpenedRun:
    if sum(file.size for file in files.values()) > MAX_BYTES:
        raise TuneError(f"{path} would take more than {MAX_BYTES:,} bytes; no shared run does")
    manifest = _read_manifest(path, files)
    listed = manifest["files"]
    for name in (*files, *listed):
        if not _is_inside(name):
            raise TuneError(f"{path} holds {name[:200]!r}, which leads out of it")
    if missing := [name for name in listed if name not in files]:
        raise TuneError(f"{path} is not whole: {missing[0]} is missing")
    if strange := [name for name in files if name not in listed and name != MANIFEST]:
        raise TuneError(f"{path} holds {strange[0][:200]!r}, which its {MANIFEST} does not know")
    into.mkdir(parents=True)
    try:
        for name, entry in {**listed, MANIFEST: None}.items():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with files[name].open() as source, target.open("xb") as out:
                digest = _copy(source, out, files[name].size)
            if entry is not None and (digest, files[name].size) != (entry["sha256"], entry["bytes"]):
                raise TuneError(f"{path}: {name} is not as it was shared: its checksum is another")
        return _describe(path, into, manifest)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> str:
    """Copy at most `size` bytes, whatever there are, and return their checksum."""
    digest, left = hashlib.sha256(), size
    while chunk := source.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise TuneError("a file in it has more bytes than it says")
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()


def _read_manifest(path: Path, files: Mapping[str, _File]) -> dict[str, Any]:
    if MANIFEST not in files or files[MANIFEST].size > _MAX_MANIFEST:
        raise TuneError(f"{path} is no shared run: it holds no {MANIFEST} of tune share")
    with files[MANIFEST].open() as stream:
        content = stream.read(_MAX_MANIFEST)
    try:
        manifest = json.loads(content)
        version = manifest["tune_share"]
        for name, entry in manifest["files"].items():
            assert isinstance(name, str)
            assert isinstance(entry["bytes"], int)
            assert isinstance(entry["sha256"], str)
        recipe = manifest["recipe"]
        assert recipe.get("file") is None or recipe["file"] in manifest["files"]
        assert all(isinstance(manifest[name], dict) for name in ("files", "inputs", "weights"))
        assert "config.yaml" in manifest["files"]
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise TuneError(f"{path} is no shared run: its {MANIFEST} is none that tune share wrote") from error
    if version != VERSION:
        raise TuneError(f"{path} was written by tune {manifest.get('tune')} in a form that is not known here")
    return dict(manifest)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    parts = name.split("/")
    return (
        not path.is_absolute()
        and len(parts) <= 4
        and all(part not in ("", ".", "..") and _NAME.match(part) is not None for part in parts)
    )


def _describe(path: Path, folder: Path, manifest: dict[str, Any]) -> OpenedRun:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    record: Any = {}
    if (folder / "run.json").is_file():
        try:
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise TuneError(f"{path}: run.json cannot be read: {str(error)[:200]}") from error
    name = path.name.removesuffix(".zip") if path.is_file() else path.resolve().name
    return OpenedRun(
        folder, name, manifest, record if isinstance(record, dict) else {}, tuple(read_leaves(text))
    )
