"""Tokenized examples in flat arrays that are mapped: 3 bytes a token for vocabularies up to 65,536, 5 beyond."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from tune.data.labels import masked_labels
from tune.errors import DataError

PARTS = ("tokens", "codes", "ends")
# A byte for each token says which weight it has: its place in a table.
_MAX_WEIGHTS = 256
_LEARNT, _MASKED = 0, 1
_FIRST_WEIGHTS = (1.0, 0.0)


class Examples:
    """A list of (tokens, weights) pairs in memory, quickly handed from one process to another.

    Args:
        vocab_size: ids are below it.
    """

    def __init__(self, vocab_size: int) -> None:
        # "H" holds 16 bits, "i" 32: a million examples of 200 tokens take 0.6 GB instead of 13 GB as lists.
        self.tokens = array("H" if vocab_size <= 1 << 16 else "i")
        self.codes = bytearray()
        self.lengths = array("i")
        self.weights = list(_FIRST_WEIGHTS)

    def append(self, tokens: Sequence[int], weights: Sequence[float]) -> None:
        """Add an example; `weights` says for each token what its loss is multiplied by, 0 where it is not learnt.

        Raises:
            DataError: these are more different weights than can be held.
        """
        for weight in sorted(set(weights).difference(self.weights)):
            add_weight(self.weights, weight)
        code_of = {weight: code for code, weight in enumerate(self.weights)}
        self.tokens.extend(tokens)
        self.codes.extend(map(code_of.__getitem__, weights))
        self.lengths.append(len(tokens))

    def __len__(self) -> int:
        return len(self.lengths)

    def to_store(self) -> TokenStore:
        """Return them by their number."""
        ends = array("q", [0, *accumulate(self.lengths)])
        parts = (self.tokens.tobytes(), bytes(self.codes), ends.tobytes())
        return TokenStore(self.tokens.typecode, self.weights, dict(zip(PARTS, parts, strict=True)))


def add_weight(table: list[float], weight: float) -> None:
    """Add a weight to the table that codes point into. Raises DataError where it is full."""
    if len(table) == _MAX_WEIGHTS:
        raise DataError(
            f"there are more than {_MAX_WEIGHTS} different weights of messages, 0 and 1 among them; this one is "
            f"{weight}. Round them, to two digits perhaps"
        )
    table.append(weight)


class TokenWriter:
    """Writes examples to files as they come, so that they need not fit into memory.

    Where a disk is full, it goes on in memory.

    Args:
        vocab_size: ids are below it.
        folder: where to; None takes files without a name, which are gone with this process.

    Attributes:
        token_code: of the array that holds the ids.
        weights: what the codes stand for.
        files: open, by the part that they hold; empty once it goes on in memory.
        failure: why it does.
    """

    def __init__(self, vocab_size: int, folder: Path | None = None) -> None:
        self.token_code = Examples(vocab_size).tokens.typecode
        self.weights = list(_FIRST_WEIGHTS)
        self.files: dict[str, io.FileIO] = {}
        self.failure: OSError | None = None
        self._memory = {part: bytearray() for part in PARTS}
        self._sizes = dict.fromkeys(PARTS, 0)
        self._digests = {part: hashlib.sha256() for part in PARTS}
        self._end = 0
        try:
            for part in PARTS:
                self.files[part] = _open_unnamed() if folder is None else _open_new(folder / part)
        except OSError as error:
            self._go_on_in_memory(error)
        self._write("ends", array("q", [0]).tobytes())

    def extend(self, examples: Examples) -> None:
        """Add examples."""
        codes: bytes | bytearray = examples.codes
        if examples.weights != self.weights[: len(examples.weights)]:
            for weight in examples.weights:
                if weight not in self.weights:
                    add_weight(self.weights, weight)
            places = [self.weights.index(weight) for weight in examples.weights]
            codes = codes.translate(bytes(places).ljust(256, b"\0"))
        ends = array("q")
        for length in examples.lengths:
            self._end += length
            ends.append(self._end)
        for part, content in zip(PARTS, (examples.tokens.tobytes(), codes, ends.tobytes()), strict=True):
            self._write(part, content)

    def finish(self) -> TokenStore:
        """Return all examples."""
        parts: dict[str, Any] = dict(self.files or self._memory)
        return TokenStore(self.token_code, self.weights, parts)

    def checksums(self) -> dict[str, dict[str, Any]]:
        """Return size and checksum of each part."""
        return {
            part: {"bytes": self._sizes[part], "sha256": self._digests[part].hexdigest()} for part in PARTS
        }

    def _write(self, part: str, content: bytes | bytearray) -> None:
        self._digests[part].update(content)
        if self.files:
            try:
                left = memoryview(content)
                while left:
                    left = left[self.files[part].write(left) or 0 :]
            except OSError as error:
                self._go_on_in_memory(error)
        if not self.files:
            self._memory[part] += content
        self._sizes[part] += len(content)

    def _go_on_in_memory(self, error: OSError) -> None:
        self.failure = error
        for part, file in self.files.items():
            file.seek(0)
            self._memory[part] += file.read(self._sizes[part])
            file.close()
        self.files = {}


class TokenStore:
    """Examples by their number. What lies in files is mapped: no copy in memory, nor in processes that it is handed to.

    Args:
        token_code: of the array that holds the ids.
        weights: what the codes stand for.
        parts: tokens, codes and ends: files open for reading, or bytes.
    """

    def __init__(
        self, token_code: str, weights: Sequence[float], parts: Mapping[str, io.FileIO | bytes]
    ) -> None:
        self._token_code = token_code
        self._weights = tuple(weights)
        self._parts = dict(parts)
        tokens, codes, ends = (_view(self._parts[part]) for part in PARTS)
        self._tokens = tokens.cast("H") if token_code == "H" else tokens.cast("i")
        self._codes, self._ends = codes, ends.cast("q")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def length(self, index: int) -> int:
        """Return the number of tokens of an example."""
        start, end = self._bounds(index)
        return end - start

    def ends(self) -> memoryview:
        """Return where in all tokens each example ends, after a 0: numbers of 64 bits."""
        return self._ends

    def example(self, index: int) -> dict[str, list[Any]]:
        """Return the `tokens` and `labels` of an example, with `weights` where a learnt token has another than 1."""
        start, end = self._bounds(index)
        tokens, codes = self._tokens[start:end].tolist(), bytes(self._codes[start:end])
        example: dict[str, list[Any]] = {
            "tokens": tokens,
            "labels": masked_labels(tokens, [code == _MASKED for code in codes]),
        }
        if max(codes) > _MASKED:
            example["weights"] = [self._weights[code] for code in codes]
        return example

    def _bounds(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} examples")
        index %= len(self)
        return self._ends[index], self._ends[index + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        parts = {part: _handed(held) for part, held in self._parts.items()}
        return _reopen, (self._token_code, self._weights, parts)


def _reopen(token_code: str, weights: Sequence[float], parts: Mapping[str, str | bytes]) -> TokenStore:
    opened = {part: io.FileIO(held) if isinstance(held, str) else held for part, held in parts.items()}
    return TokenStore(token_code, weights, opened)


def _view(held: io.FileIO | bytes) -> memoryview:
    if not isinstance(held, io.FileIO):
        return memoryview(held)
    if not os.fstat(held.fileno()).st_size:
        return memoryview(b"")
    return memoryview(mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ))


def _handed(held: io.FileIO | bytes) -> str | bytes:
    """Return the path by which another process finds a file, or the bytes where there is none."""
    if not isinstance(held, io.FileIO):
        return bytes(held)
    with suppress(OSError):
        if isinstance(held.name, str) and os.path.samestat(os.stat(held.name), os.fstat(held.fileno())):
            return held.name
    path = f"/proc/{os.getpid()}/fd/{held.fileno()}"
    return path if os.path.exists(path) else bytes(_view(held))


def _open_new(path: Path) -> io.FileIO:
    return io.FileIO(path.resolve().as_posix(), "x+")


def _open_unnamed() -> io.FileIO:
    file = tempfile.TemporaryFile(prefix="tune-", buffering=0)  # noqa: SIM115 - the store keeps it open
    assert isinstance(file, io.FileIO)
    return file
