"""What every metric logger is, and those that write lines into a file of their own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from tune.checkpoints.writers import replacing
from tune.errors import CheckpointError, ConfigError
from tune.utils import expand_path

Scalar = float | int | str | None


class MetricLogger(ABC):
    """What the loop needs of a logger."""

    def log(self, name: str, value: Scalar, step: int) -> None:
        """Write one metric of optimizer step `step`."""
        self.log_dict({name: value}, step)

    @abstractmethod
    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step`."""

    def rewind(self, step: int) -> None:  # noqa: B027 - what a terminal or a service has shown stays
        """Take back what is later than `step`, where that can be done."""

    def close(self) -> None:  # noqa: B027
        """Close what was opened, if anything."""


class FileLogger(MetricLogger):
    """A text file with one line per call, opened for appending at the first line.

    A file that holds anything but such lines is somebody else's: it is neither added to, cut nor removed.

    Args:
        log_dir: folder of the file.
        filename: its name, without a folder.
        overwrite: forget what an earlier run left in the file.

    Raises:
        ConfigError: the name is none of a file in that folder.
        CheckpointError: the file is not of this kind, or cannot be read.
    """

    MARK: ClassVar[str]  # how each line begins

    def __init__(self, log_dir: str, filename: str, overwrite: bool = False) -> None:
        if filename in ("", ".", "..") or set("/\\\0") & set(filename):
            raise ConfigError(
                f"the metric logger's filename is {filename!r}, expected a bare name in its log_dir"
            )
        self.path = expand_path(log_dir) / filename
        self._file: Any = None
        if self._is_there() and overwrite:
            with self._explained():
                self.path.unlink(missing_ok=True)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step` on one line; it is in the file when this returns."""
        with self._explained():
            if self._file is not None and not os.fstat(self._file.fileno()).st_nlink:
                self.close()  # somebody removed it: what else is written would be seen by nobody
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self._is_there() and not (lines := self._read())[-1].endswith("\n"):
                    self._replace(lines[:-1])
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
            self._file.write(self.format(payload, step) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """Return once every line is on the disk."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write metrics to {self.path}: {error.strerror}.") from error

    def rewind(self, step: int) -> None:
        """Cut the lines at the end that are later than `step`, or half written: the resumed run writes them again."""
        self.close()
        if not self._is_there():
            return
        lines = self._read()
        with self._explained():
            # From the end only: a file that several runs share keeps what the others wrote before.
            while lines:
                last = self.read_step(lines[-1])
                if last is not None and last <= step and lines[-1].endswith("\n"):
                    break
                lines.pop()
            self._replace(lines)

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            with suppress(OSError):  # a line that could not be written was an error then
                self._file.close()
            self._file = None

    def _is_there(self) -> bool:
        """Return whether the file has lines, and is one of ours, as its first line tells. A pipe has none."""
        with self._explained():
            if not self.path.is_file() and not self.path.is_dir():
                return False
            with open(self.path, encoding="utf-8", errors="replace") as file:
                start = file.read(len(self.MARK))
        if not self.MARK.startswith(start):
            raise CheckpointError(
                f"{self.path} holds something else than lines of {type(self).__name__}, so it is left as it is. Choose "
                "another filename or log_dir for the metric logger, or move that file away."
            )
        return bool(start)

    def _read(self) -> list[str]:
        with self._explained():
            return self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)

    def _replace(self, lines: list[str]) -> None:
        with replacing(self.path) as staged:
            staged.write_text("".join(lines), encoding="utf-8")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write metrics to {self.path}: {error.strerror}. Saved steps are intact. Make room or choose "
                "another output_dir, then go on with resume_from_checkpoint=true."
            ) from error

    @abstractmethod
    def format(self, payload: Mapping[str, Scalar], step: int) -> str:
        """Return the line for `payload`."""

    @abstractmethod
    def read_step(self, line: str) -> int | None:
        """Return the step a line is of, or None if it is not a whole line of ours."""
