"""Where metrics go."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune.checkpoints.writers import replacing
from tune.errors import CheckpointError, ConfigError
from tune.training.metric_files import FileLogger, MetricLogger, Scalar
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


class StdoutLogger(MetricLogger):
    """Writes one line per step to stdout."""

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step` on one line."""
        sys.stdout.write(_format_line(payload, step) + "\n")
        sys.stdout.flush()


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
