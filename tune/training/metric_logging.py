"""Where metrics go."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from tune.checkpoints.writers import replacing
from tune.errors import CheckpointError, ConfigError
from tune.utils import expand_path

__all__ = [
    "DiskLogger",
    "FileLogger",
    "JSONLLogger",
    "MetricLogger",
    "StdoutLogger",
    "TensorBoardLogger",
    "WandBLogger",
]

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


class StdoutLogger(MetricLogger):
    """Writes one line per step to stdout."""

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step` on one line."""
        sys.stdout.write(_format_line(payload, step) + "\n")
        sys.stdout.flush()


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
        lines = self._read_own()
        if overwrite and lines:
            with self._explained():
                self.path.unlink(missing_ok=True)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step` on one line; it is in the file when this returns."""
        with self._explained():
            if self._file is not None and not self.path.exists():
                self.close()  # somebody removed it: what else is written would be seen by nobody
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if (lines := self._read_own()) and not lines[-1].endswith("\n"):
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
        lines = self._read_own()
        if not lines:
            return
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

    def _read_own(self) -> list[str]:
        """Return the file's lines, of which the last may be cut short; none where there is no file."""
        with self._explained():
            if not self.path.is_file() and not self.path.is_dir():  # a pipe has no lines to take back
                return []
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        # The last may be cut short.
        if any(not line.startswith(self.MARK[: len(line)]) for line in lines):
            raise CheckpointError(
                f"{self.path} holds something else than lines of {type(self).__name__}, so it is left as it is. Choose "
                "another filename or log_dir for the metric logger, or move that file away."
            )
        return lines

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


class JSONLLogger(FileLogger):
    """Writes one JSON object per step: {"step": 3, "loss": 2.1, ...}. NaN and infinities become text.

    Args and Raises: those of `FileLogger`.
    """

    MARK = '{"step": '

    def __init__(self, log_dir: str, filename: str = "metrics.jsonl", overwrite: bool = False) -> None:
        super().__init__(log_dir, filename, overwrite)

    def format(self, payload: Mapping[str, Scalar], step: int) -> str:
        """Return `payload` as strict JSON, which has no NaN."""
        row = {"step": step, **payload}
        # A NaN must stay visible in the log, and the log must stay readable for strict parsers.
        finite = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        return json.dumps(finite, allow_nan=False)

    def read_step(self, line: str) -> int | None:
        """Return the step of a JSON line, or None if it was cut short."""
        try:
            row = json.loads(line)
        except ValueError:
            return None
        step = row.get("step") if isinstance(row, dict) else None
        return step if isinstance(step, int) else None


class DiskLogger(FileLogger):
    """Writes one readable line per step: `Step 3 | loss:2.1 lr:2e-05`.

    Args and Raises: those of `FileLogger`.
    """

    MARK = "Step "

    def __init__(self, log_dir: str, filename: str = "log.txt") -> None:
        super().__init__(log_dir, filename)

    def format(self, payload: Mapping[str, Scalar], step: int) -> str:
        """Return the line for `payload`."""
        return _format_line(payload, step)

    def read_step(self, line: str) -> int | None:
        """Return the step of a line that this class wrote, or None."""
        words = line.split(maxsplit=2)
        is_ours = len(words) == 3 and words[0] == "Step" and words[1].isdigit() and words[2].startswith("|")
        return int(words[1]) if is_ours else None


class TensorBoardLogger(MetricLogger):
    """Writes event files that `tensorboard --logdir LOG_DIR` shows.

    Args:
        log_dir: folder of the event files.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "metric_logger tensorboard needs the package tensorboard, which is not installed here: "
                "pip install tensorboard (or metric_logger=disk)."
            ) from error
        self._make_writer: Any = SummaryWriter
        self._log_dir = str(expand_path(log_dir))
        self._writer: Any = None
        self._purge_step: int | None = None

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step`; text is left out."""
        if self._writer is None:
            # Opened late, so that a resume can say from which step on older events are void.
            self._writer = self._make_writer(self._log_dir, purge_step=self._purge_step)
        for name, value in payload.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, global_step=step)

    def rewind(self, step: int) -> None:
        """Void events later than `step`."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Write what is buffered and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandBLogger(MetricLogger):
    """Sends metrics to Weights & Biases.

    Args:
        project: its name there.
        entity: user or team; None is your default.
        group: name that joins several runs.
        name: name of this run; None lets the service invent one.
        mode: "online", "offline" or "disabled".
        log_dir: folder for the service's local files, and for `wandb_run_id`, which says which run this is there.
        resume: go on with the run that `wandb_run_id` names, if there is one. Steps that it shows already stay as
            they are there: the service takes no step twice.

    Raises:
        ConfigError: wandb is not installed.
        CheckpointError: `wandb_run_id` is something else, or cannot be written.
    """

    def __init__(
        self,
        project: str = "tune",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        mode: str = "online",
        log_dir: str | None = None,
        resume: bool = False,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "metric_logger wandb needs the package wandb, which is not installed here: "
                "pip install wandb (or metric_logger=disk)."
            ) from error
        folder = None if log_dir is None else expand_path(log_dir)
        run_id = None if folder is None else _choose_run_id(folder / "wandb_run_id", resume)
        self._run: Any = wandb.init(
            project=project,
            entity=entity,
            group=group,
            name=name,
            mode=mode,
            dir=None if folder is None else str(folder),
            id=run_id,
            resume=None if run_id is None else "allow",
        )

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Send the metrics of optimizer step `step`."""
        self._run.log(dict(payload), step=step)

    def close(self) -> None:
        """End the run in the service."""
        self._run.finish()


def _choose_run_id(file: Path, resume: bool) -> str:
    """Return the id that `file` holds where a run goes on; otherwise a new one, which is written there."""
    try:
        held = file.read_text(encoding="utf-8", errors="replace") if os.path.lexists(file) else ""
        if held and not re.fullmatch(r"[a-z0-9]{8}\n", held):
            raise CheckpointError(f"{file} holds no id of a run, so it is left as it is; move it away.")
        if held and resume:
            return held.strip()
        run_id = secrets.token_hex(4)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as staged:
            staged.write_text(run_id + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {error.strerror}. Choose another output_dir.") from error
    return run_id


def _format_line(payload: Mapping[str, Scalar], step: int) -> str:
    return f"Step {step} | " + " ".join(
        f"{name}:{value:.6g}" if isinstance(value, float) else f"{name}:{value}"
        for name, value in payload.items()
    )
