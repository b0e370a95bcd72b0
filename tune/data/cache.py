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
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.data.report import DataReport
from tune.data.store import PARTS, TokenStore, TokenWriter
from tune.errors import ConfigError
from tune.utils.logging import get_logger
from tune.utils.paths import expand_path, flush

OFF = "off"
SIZE_VARIABLE = "TUNE_DATA_CACHE_GB"
_DEFAULT_GB = 50.0
_MARK = "tune data cache 1"
_ENTRY = "entry.json"
_NAMES = {_ENTRY, *PARTS}
_KEY = re.compile(r"[0-9a-f]{40}")
_LEFT = re.compile(r"([0-9a-f]{40}(?:\.digest)?)\.(?:partial|lock)")
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Tokenized data of tune: made anew where it is missing. `tune cache ls` and `tune cache clear` look after it.\n"
)
_MAX_ENTRY_BYTES = 1 << 24
# A file that changed so shortly before it was read may change once more without a later time.
_SETTLED_S = 2.0
_MAX_DIGESTS = 10_000

Fill = Callable[[TokenWriter], DataReport]


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
            with self._locked(key):
                if (found := self._find(key)) is not None:
                    return found
                return self._make(key, source, vocab_size, fill)
        except _Unusable as unusable:
            error = unusable.error
            get_logger().warning(
                f"The cache of tokenized data, {self.root}, cannot be used ({error.strerror or error}): the data is "
                "tokenized for this process alone. Choose another folder with data_cache_dir, or none: "
                f"data_cache_dir={OFF}"
            )
            writer = TokenWriter(vocab_size)
            report = fill(writer)
            return writer.finish(), report

    def digest(self, files: Sequence[Path]) -> str:
        """Return the checksum of the content of files.

        It is noted, so that files of the same names, sizes and times of change are not read again.

        Raises:
            OSError: one cannot be read.
        """
        facts, newest = _facts_of(files)
        note = self.root / "digests" / hashlib.sha256(facts.encode()).hexdigest()[:40]
        if (known := _read_note(note)) is not None:
            return known
        with suppress(_Unusable), self._locked(f"{note.name}.digest"):
            if (known := _read_note(note)) is not None:
                return known
            digest = _digest_files(files)
            if time.time() - newest > _SETTLED_S and _facts_of(files)[0] == facts:
                self._note(note, digest)
            return digest
        return _digest_files(files)

    def entries(self) -> list[CacheEntry]:
        """Return what there is, the last used first."""
        found = [self._describe(path) for path in self._folders()]
        return sorted((entry for entry in found if entry), key=lambda entry: -entry.used)

    def clear(self) -> tuple[list[CacheEntry], list[CacheEntry]]:
        """Remove all entries that are not in use; return those that are removed, and those that stay."""
        removed: list[CacheEntry] = []
        kept: list[CacheEntry] = []
        for entry in self.entries():
            (removed if self._remove(entry.key) else kept).append(entry)
        self._remove_leftovers()
        for note in self._notes():
            note.unlink(missing_ok=True)
        with suppress(OSError):
            (self.root / "digests").rmdir()
        return removed, kept

    def _find(self, key: str) -> tuple[TokenStore, DataReport] | None:
        """Return what an entry holds, None where there is none or it is not as it was written."""
        folder = self.root / key
        try:
            entry = _read_entry(folder, key)
            files = {part: io.FileIO(str((folder / part).resolve())) for part in PARTS}
            fcntl.flock(files["tokens"], fcntl.LOCK_SH)
            for part, file in files.items():
                if os.fstat(file.fileno()).st_size != entry["files"][part]["bytes"]:
                    raise ValueError(f"{part} has another size than was written")
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["files"][part]["sha256"]:
                    raise ValueError(f"the content of {part} is not what was written")
            store = TokenStore(entry["token_code"], entry["weights"], files)
            report = DataReport(**entry["report"])
            if len(store) != report.num_examples:
                raise ValueError("it holds another number of examples than it says")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:  # TypeError: of another version
            get_logger().warning(f"{folder} is not as it was written ({error}); the data is tokenized anew")
            return None
        with suppress(OSError):  # it may be another's, to read alone
            os.utime(folder / _ENTRY)
        return store, report

    def _make(self, key: str, source: str, vocab_size: int, fill: Fill) -> tuple[TokenStore, DataReport]:
        partial = self.root / f"{key}.partial"
        with _usable():
            if os.path.lexists(partial) and not _remove_folder(partial):
                raise FileExistsError(errno.EEXIST, "something else has the name of an entry", str(partial))
            partial.mkdir()
        try:
            writer = TokenWriter(vocab_size, partial)
            report = fill(writer)
            if writer.failure is None:
                with suppress(OSError):
                    self._keep(key, source, writer, report, partial)
                    if (found := self._find(key)) is not None:
                        return found
            failure = writer.failure or OSError("it is not there after it was written")
            get_logger().warning(
                f"The tokens of {source} could not be kept in {self.root} ({failure.strerror or failure}); this "
                "process goes on without. Make room, or choose another folder with data_cache_dir"
            )
            return writer.finish(), report
        finally:
            _remove_folder(partial)

    def _keep(self, key: str, source: str, writer: TokenWriter, report: DataReport, partial: Path) -> None:
        """Give what has been written its place, once it is on the disk."""
        entry = {
            "format": _MARK,
            "key": key,
            "source": source,
            "token_code": writer.token_code,
            "weights": writer.weights,
            "files": writer.checksums(),
            "report": vars(report),
        }
        text = json.dumps(entry | {"sha256": _checksum(entry)})
        (partial / _ENTRY).write_text(text, encoding="utf-8")
        for name in _NAMES:
            flush(partial / name)
        flush(partial)
        folder = self.root / key
        if os.path.lexists(folder) and not _remove_folder(folder):
            raise FileExistsError(errno.EEXIST, "something else has the name of an entry", str(folder))
        os.rename(partial, folder)
        flush(self.root)
        self._make_room(key)

    def _make_room(self, newest: str) -> None:
        """Remove the entries not used for longest, until the rest fits; never the newest, nor one in use."""
        entries = self.entries()
        total = sum(entry.num_bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.max_bytes:
                break
            if entry.key != newest and self._remove(entry.key):
                total -= entry.num_bytes
        self._remove_leftovers()
        notes = self._notes()
        for note in sorted(notes, key=lambda note: note.lstat().st_mtime)[
            : max(len(notes) - _MAX_DIGESTS, 0)
        ]:
            note.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove what a process has left that was killed while it wrote."""
        with suppress(OSError):
            names = {match[1] for entry in os.scandir(self.root) if (match := _LEFT.fullmatch(entry.name))}
            for name in names:
                with suppress(_Unusable), self._locked(name, wait=False) as is_ours:
                    if is_ours and _KEY.fullmatch(name):
                        _remove_folder(self.root / f"{name}.partial")

    def _remove(self, key: str) -> bool:
        folder = self.root / key
        with suppress(OSError, ValueError):
            _read_entry(folder, key)
            with open(folder / PARTS[0], "r+b") as tokens:
                fcntl.flock(tokens, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return _remove_folder(folder)
        return False

    def _describe(self, folder: Path) -> CacheEntry | None:
        try:
            entry = _read_entry(folder, folder.name)
            num_bytes = sum((folder / name).lstat().st_size for name in _NAMES)
            used = (folder / _ENTRY).lstat().st_mtime
        except (OSError, ValueError):
            return None
        num_examples = entry["report"]["num_examples"]
        return CacheEntry(folder.name, entry["source"], num_bytes, num_examples, used, _is_in_use(folder))

    def _folders(self) -> list[Path]:
        try:
            found = list(os.scandir(self.root))
        except OSError:
            return []
        return [
            Path(entry.path)
            for entry in found
            if _KEY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]

    def _notes(self) -> list[Path]:
        folder = self.root / "digests"
        if folder.is_symlink() or not folder.is_dir():
            return []
        return [
            Path(entry.path)
            for entry in os.scandir(folder)
            if _KEY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]

    def _note(self, note: Path, digest: str) -> None:
        with suppress(OSError):
            note.parent.mkdir(exist_ok=True)
            staged = note.with_name(f"{note.name}.{os.getpid()}")
            staged.write_text(digest, encoding="ascii")
            os.replace(staged, note)

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Be the only one in here, on this machine, for a name; yield whether that is so.

        A process that dies lets go.

        Raises:
            _Unusable: the folder cannot be written to, or locks nothing.
        """
        path = self.root / f"{name}.lock"
        with _usable():
            self._make_root()
            lock = _take_lock(path, wait)
        if lock is None:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # by its owner, and who waited for it makes it anew
            os.close(lock)

    def _make_root(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(_TAG, encoding="ascii")


class _Unusable(Exception):
    """The cache's folder cannot be used."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unusable(error) from error


def _take_lock(path: Path, wait: bool) -> int | None:
    """Return a descriptor that holds the lock at `path`, None where another has it and is not waited for."""
    told = False
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(lock)
                    return None
                if not told and not path.name.endswith(".digest.lock"):
                    get_logger().info("Another process is tokenizing the same data; waiting for it")
                told = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(lock).st_ino:
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its last owner has removed it: it locks nothing any more


def _read_entry(folder: Path, key: str) -> dict[str, Any]:
    """Return what an entry says of itself. Raises OSError or ValueError where it is none of ours."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is no folder")
    path = folder / _ENTRY
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_ENTRY_BYTES:
        raise ValueError(f"its {_ENTRY} is not one that tune wrote")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        is_ours = entry.pop("sha256") == _checksum(entry) and (entry["format"], entry["key"]) == (_MARK, key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"its {_ENTRY} is not what tune wrote for it")
    return dict(entry)


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _is_in_use(folder: Path) -> bool:
    try:
        with open(folder / PARTS[0], "r+b") as tokens:
            fcntl.flock(tokens, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # as far as anybody can tell who may not write there
    return False


def _remove_folder(folder: Path) -> bool:
    """Remove a folder of the cache, unless something else has come into it; return whether it is gone."""
    with suppress(OSError):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        names = sorted(
            os.listdir(folder), key=lambda name: name != _ENTRY
        )  # without it, it is no entry any more
        if not _NAMES.issuperset(names):
            return False
        for name in names:
            os.unlink(folder / name)
        folder.rmdir()
        return True
    return not os.path.lexists(folder)


def _facts_of(files: Sequence[Path]) -> tuple[str, float]:
    """Return what changes when the content of files does, and when the last of them changed."""
    facts, newest = [], 0.0
    for file in files:
        found = file.stat()
        # The time of change cannot be set back, as the other one can.
        facts.append(
            [str(file), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
        )
        newest = max(newest, found.st_mtime, found.st_ctime)
    return json.dumps([os.getcwd(), facts]), newest


def _digest_files(files: Sequence[Path]) -> str:
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


def open_cache(folder: str | None) -> DataCache | None:
    """Return the cache in a folder, None where there shall be none.

    Args:
        folder: null or "" is the default place, "off" none.

    Raises:
        ConfigError: the bound of its size is no number, or there is no home to keep it in.
    """
    if folder == OFF:
        return None
    text = os.environ.get(SIZE_VARIABLE, "")
    try:
        num_gb = float(text) if text else _DEFAULT_GB
        if not 0 <= num_gb < 1e9:
            raise ValueError
    except ValueError as error:
        raise ConfigError(f"{SIZE_VARIABLE} is {text!r}, expected gigabytes, such as 50") from error
    return DataCache(expand_path(folder) if folder else default_folder(), int(num_gb * 1e9))


def default_folder() -> Path:
    """Return where tokenized data is kept: $XDG_CACHE_HOME/tune/data, or ~/.cache/tune/data."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))) / "tune" / "data"
