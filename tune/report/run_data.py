"""What a report is made from: the files in the folder of a run, whichever of them are there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tune.checkpoints.run_folder import read_run_record
from tune.errors import DataError
from tune.report.settings import Setting, read_settings

__all__ = ["RunData", "read_run", "thin_lines"]

Row = dict[str, Any]

# Lines of metrics that are parsed and drawn: no screen shows more.
MAX_ROWS = 1200
_LOSS = b'"loss": '
_MAX_SAMPLES = 4000
_MAX_PREVIEW = 200_000
# A file of a run is of this size at most; more is nobody's.
_MAX_BYTES = 2**31
FILES = ("metrics.jsonl", "config.yaml", "run.json")


@dataclass
class RunData:
    """A run, as its folder tells it.

    Attributes:
        folder: of the run.
        record: what run.json says; empty for a run of an older version.
        rows: lines of metrics.jsonl, thinned out where there are many.
        num_rows: how many lines there are.
        samples: lines of samples.jsonl, the newest.
        settings: of config.yaml, all of them.
        preview: of preview.txt.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    num_rows: int = 0
    samples: list[Row] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    preview: str = ""

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return the steps and values of a metric, where it is a number; NaN and infinities are left out."""
        points = []
        for row in self.rows:
            value = row.get(key)
            if isinstance(value, int | float) and _is_number(value) and math.isfinite(value):
                points.append((float(row["step"]), float(value)))
        return points

    def last(self, key: str) -> float | None:
        """Return the last value of a metric."""
        points = self.series(key)
        return points[-1][1] if points else None

    def metric_names(self) -> list[str]:
        """Return the names of all metrics that are numbers, in the order in which they come."""
        return list(
            dict.fromkeys(key for row in self.rows for key, value in row.items() if _is_number(value))
        )


def read_run(folder: Path) -> RunData:
    """Return what the folder of a run holds; what cannot be read of it is left out.

    Raises:
        DataError: it holds none of the files of a run.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise DataError(f"{folder} is no run: it holds neither of {', '.join(FILES)}.")
    lines = _read(folder / "metrics.jsonl").split(b"\n")
    rows = [row for row in map(_parse, thin_lines(lines)) if _is_step(row.get("step"))]
    samples = [
        row for row in map(_parse, _read(folder / "samples.jsonl").split(b"\n")[-_MAX_SAMPLES:]) if row
    ]
    return RunData(
        folder=folder,
        record=read_run_record(folder) or {},
        rows=rows,
        num_rows=sum(1 for line in lines if line),
        samples=samples,
        settings=read_settings(_read(folder / "config.yaml").decode("utf-8", errors="replace")),
        preview=_read(folder / "preview.txt")[: 4 * _MAX_PREVIEW].decode("utf-8", errors="replace")[
            :_MAX_PREVIEW
        ],
    )


def thin_lines(lines: Sequence[bytes], limit: int = MAX_ROWS) -> list[bytes]:
    """Return at most about `limit` lines of metrics, in their order, that show the same curve.

    Neighbours are put together; of each group the first stays, and those with its highest and lowest loss, so that no
    spike is lost. Lines with a validation are few, and as many of them stay as fit.
    """
    if len(lines) <= limit:
        return list(lines)
    validations = [number for number, line in enumerate(lines) if b'"val_loss"' in line]
    kept = set(validations[:: 1 + len(validations) // (limit // 4)])
    size = math.ceil(len(lines) / (limit // 4))
    for first in range(0, len(lines), size):
        group = range(first, min(first + size, len(lines)))
        losses = [(loss, number) for number in group if (loss := _find_loss(lines[number])) is not None]
        kept |= {first, group[-1]} if not losses else {first, min(losses)[1], max(losses)[1]}
    kept.add(len(lines) - 1)
    return [lines[number] for number in sorted(kept)]


def group_samples(samples: Sequence[Row], most: int = 24) -> Iterator[tuple[str, list[tuple[Any, str]]]]:
    """Yield each prompt that was asked during the run, with steps and answers, thinned out to `most`."""
    prompts = list(dict.fromkeys(str(row.get("prompt", "")) for row in samples))
    for prompt in islice(prompts, 20):
        asked = [row for row in samples if str(row.get("prompt", "")) == prompt]
        answers = [(row.get("step"), str(row.get("answer", ""))) for row in asked]
        every = math.ceil(len(answers) / most)
        yield prompt, [*answers[:-1:every], answers[-1]]


def _find_loss(line: bytes) -> float | None:
    """Return the loss of a line as a run writes it, without the cost of parsing it whole."""
    start = line.find(_LOSS)
    if start < 0:
        return None
    try:
        loss = float(line[start + len(_LOSS) : line.find(b",", start)])
    except ValueError:  # "nan", or no line of ours
        return None
    return loss if math.isfinite(loss) else None


def _read(path: Path) -> bytes:
    with suppress(OSError):
        # A link in a folder from elsewhere could bring a file of one's own into a page that is sent on.
        if not path.is_symlink() and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            return path.read_bytes()
    return b""


def _parse(line: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return {}


def _is_number(value: Any) -> bool:
    """Tell whether a value can be drawn; JSON has numbers that no screen does."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
