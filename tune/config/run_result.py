"""What a recipe that was called from Python gives back: how its run ended, and where everything is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RunResult", "read_result"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        output_dir: its folder.
        exit_code: 0, or what the command line would have exited with: 130 after Ctrl-C.
        status: "finished" or "stopped".
        step, num_steps: optimizer steps taken, and planned.
        loss, val_loss, best_val_loss: the last ones, None where there is none.
        model: folder of what was trained, a whole model or an adapter; None where nothing was saved.
        report: the page about the run.
        record: all that run.json says.
    """

    output_dir: Path
    exit_code: int
    status: str = ""
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    model: Path | None = None
    report: Path | None = None
    record: dict[str, Any] = field(default_factory=dict, repr=False)


def read_result(output_dir: Path, exit_code: int) -> RunResult:
    """Return how the run in a folder ended, as its record tells."""
    record: Any = {}
    with suppress(OSError, ValueError):
        record = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    told = record.get("result") or {}
    names = ("step", "num_steps", "loss", "val_loss", "best_val_loss")
    latest = output_dir / "latest"
    model = next((latest / part for part in ("adapter", "model") if (latest / part).is_dir()), None)
    page = output_dir / "report.html"
    return RunResult(
        output_dir,
        exit_code,
        status=str(record.get("status", "")),
        model=model,
        report=page if page.is_file() else None,
        record=record,
        **{name: told[name] for name in names if told.get(name) is not None},
    )
