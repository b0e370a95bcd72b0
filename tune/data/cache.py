"""Tokens on the disk, made once: later runs, and the other processes of this one, map what the first has written.

    ROOT/CACHEDIR.TAG                        says that all of this can be made anew
    ROOT/<key>/entry.json                    what is in it: sizes and checksums of the files, the report
    ROOT/<key>/tokens, codes, ends           see `tune.data.store`
    ROOT/<key>.partial/                      being written, by whoever has locked <key>.lock
    ROOT/digests/<facts>                     the checksum of data files of these sizes and times of change

The key says all that decides about the tokens. An entry is written whole or not at all, and believed only where its
checksums are right. While one is mapped, its tokens are locked, so that nobody removes it for its room.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tune.data.cache_digests import digest_files, remove_notes
from tune.data.cache_entries import (
    ENTRY,
    MARK,
    NAMES,
    CacheEntry,
    list_entries,
    read_entry,
    remove_entry,
    remove_folder,
    remove_leftovers,
    write_entry,
)
from tune.data.cache_locks import UnusableError, locked, usable
from tune.data.report import DataReport
from tune.data.store import PARTS, TokenStore, TokenWriter
from tune.errors import ConfigError
from tune.utils.logging import get_logger
from tune.utils.paths import expand_path, flush

OFF = "off"
_SIZE_VARIABLE = "TUNE_DATA_CACHE_GB"
_DEFAULT_GB = 50.0

Fill = Callable[[TokenWriter], DataReport]


class DataCache:
    """The folder of tokenized data.

    Args:
        root: made when it is first written to.
        max_bytes: what all entries may have together; beyond it, those not used for longest are removed.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes

    def load(self, key: str, source: str, vocab_size: int, fill: Fill) -> tuple[TokenStore, DataReport]:
        """Return the tokens and the report that belong to a key, by `fill` where they are not there.

        Where another process is at it, that is waited for. Where the folder cannot be used, a notice says so and the
        tokens are not kept.

        Args:
            key: of 40 hexadecimal digits.
            source: what it is made of, for people.
            vocab_size: ids are below it.
            fill: writes all examples and returns the report; may raise.
        """
        if (found := self._find(key)) is not None:
            return found
        try:
            waiting = "Another process is tokenizing the same data; waiting for it"
            with locked(self.root, key, notice=waiting):
                if (found := self._find(key)) is not None:
                    return found
                return self._make(key, source, vocab_size, fill)
        except UnusableError as unusable:
            error = unusable.error
            get_logger().warning(
                f"The cache of tokenized data, {self.root}, cannot be used ({error.strerror or error}): the data is "
                "tokenized for this process alone. Choose another folder with data_cache_dir, or none: "
                f"data_cache_dir={OFF}"
            )
            writer = TokenWriter(vocab_size)
            report = fill(writer)
            return writer.finish(), report

    def find(self, key: str) -> tuple[TokenStore, DataReport] | None:
        """Return the tokens and the report that belong to a key, None where they are not there."""
        return self._find(key)

    def digest(self, files: Sequence[Path]) -> str:
        """Return the checksum of the content of files. Raises OSError where one cannot be read."""
        return digest_files(self.root, files)

    def entries(self) -> list[CacheEntry]:
        """Return what there is, the last used first."""
        return list_entries(self.root)

    def clear(self) -> tuple[list[CacheEntry], list[CacheEntry]]:
        """Remove all entries that are not in use; return those that are removed, and those that stay."""
        removed: list[CacheEntry] = []
        kept: list[CacheEntry] = []
        for entry in self.entries():
            (removed if remove_entry(self.root, entry.key) else kept).append(entry)
        remove_leftovers(self.root)
        remove_notes(self.root, keep=0)
        return removed, kept

    def make_room(self, newest: str = "") -> None:
        """Remove the entries not used for longest, until the rest fits; never the newest, nor one in use."""
        entries = self.entries()
        total = sum(entry.num_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.max_bytes:
                break
            if entry.key != newest and remove_entry(self.root, entry.key):
                total -= entry.num_bytes
        remove_leftovers(self.root)
        remove_notes(self.root)

    def _find(self, key: str) -> tuple[TokenStore, DataReport] | None:
        """Return what an entry holds, None where there is none or it is not as it was written."""
        folder = self.root / key
        try:
            entry = read_entry(folder)
            files = {part: io.FileIO(str((folder / part).resolve())) for part in PARTS}
            fcntl.flock(files["tokens"], fcntl.LOCK_SH)
            for part, file in files.items():
                if os.fstat(file.fileno()).st_size != entry["files"][part]["bytes"]:
                    raise ValueError(f"{part} has another size than was written")
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["files"][part]["sha256"]:
                    raise ValueError(f"the content of {part} is not what was written")
            store = TokenStore(entry["token_code"], entry["weights"], files)
            report = DataReport(**entry["report"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            get_logger().warning(f"{folder} is not as it was written ({error}); the data is tokenized anew")
            return None
        with suppress(OSError):  # it may be another's, to read alone
            os.utime(folder / ENTRY)
        return store, report

    def _make(self, key: str, source: str, vocab_size: int, fill: Fill) -> tuple[TokenStore, DataReport]:
        partial = self.root / f"{key}.partial"
        with usable():
            _remove_or_refuse(partial)
            partial.mkdir()
        try:
            writer = TokenWriter(vocab_size, partial)
            report = fill(writer)
            failure = writer.failure
            if failure is None:
                try:
                    self._keep(key, source, writer, report, partial)
                    if (found := self._find(key)) is not None:
                        return found
                except OSError as error:
                    failure = error
            reason = failure.strerror or failure if failure else "it is not there after it was written"
            get_logger().warning(
                f"The tokens of {source} could not be kept in {self.root} ({reason}); this process goes on without. "
                "Make room, or choose another folder with data_cache_dir"
            )
            return writer.finish(), report
        finally:
            remove_folder(partial)

    def _keep(self, key: str, source: str, writer: TokenWriter, report: DataReport, partial: Path) -> None:
        """Give what has been written its place, once it is on the disk."""
        entry = {
            "format": MARK,
            "key": key,
            "source": source,
            "token_code": writer.token_code,
            "weights": writer.weights,
            "files": writer.checksums(),
            "report": vars(report),
        }
        write_entry(partial, entry)
        for name in NAMES:
            flush(partial / name)
        flush(partial)
        _remove_or_refuse(self.root / key)
        os.rename(partial, self.root / key)
        flush(self.root)
        self.make_room(key)


def _remove_or_refuse(folder: Path) -> None:
    if os.path.lexists(folder) and not remove_folder(folder):
        raise FileExistsError(errno.EEXIST, "something else has the name of an entry", str(folder))


def open_cache(folder: str | None) -> DataCache | None:
    """Return the cache in a folder, None where there shall be none.

    Args:
        folder: null or "" is the default place, $XDG_CACHE_HOME/tune/data or ~/.cache/tune/data; "off" is none.

    Raises:
        ConfigError: the bound of its size is no number.
    """
    if folder == OFF:
        return None
    text = os.environ.get(_SIZE_VARIABLE, "")
    try:
        num_gb = float(text) if text else _DEFAULT_GB
        if not 0 <= num_gb < 1e9:
            raise ValueError
    except ValueError as error:
        raise ConfigError(f"{_SIZE_VARIABLE} is {text!r}, expected gigabytes, such as 50") from error
    max_bytes = int(num_gb * 1e9)
    if folder:
        return DataCache(expand_path(folder), max_bytes)
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        get_logger().warning("There is no home to keep tokenized data in; name a folder with data_cache_dir")
        return None
    return DataCache(Path(base) / "tune" / "data", max_bytes)
