"""The folder of a run, as those read it who come after: what is in it, and what its record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RUN_RECORD", "read_run_record"]

RUN_RECORD = "run.json"
_MAX_BYTES = 20_000_000


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """Return what `run.json` in the folder of a run says, None where there is none of ours."""
    path = folder / RUN_RECORD
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "tune_run" not in record:
        return None
    sessions = record.get("sessions")
    record["sessions"] = (
        [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []
    )
    return record
