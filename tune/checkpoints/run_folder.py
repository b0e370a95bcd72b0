"""The folder of a run, as those read it who come after: what is in it, and what its record says."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.checkpoints.adapter_config import CONFIG_FILE, find_adapter_dir
from tune.checkpoints.adapter_files import read_adapter_base
from tune.checkpoints.locate import find_model_dir
from tune.errors import CheckpointError
from tune.utils.paths import expand_path

__all__ = ["RUN_RECORD", "Trained", "find_run", "locate_trained", "read_run_record"]

RUN_RECORD = "run.json"
_MAX_BYTES = 20_000_000


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """Return what `run.json` in the folder of a run says, None where there is none of ours.

    A run that was killed could not say so itself: its lock tells.
    """
    path = folder / RUN_RECORD
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "tune_run" not in record:
        return None
    if record.get("status") == "running" and not _is_held(folder):
        record["status"] = "killed"
    sessions = record.get("sessions")
    record["sessions"] = (
        [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []
    )
    return record


def _is_held(folder: Path) -> bool:
    """Tell whether a run is going on in a folder, as far as its lock says, which ends with the process."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return True  # nobody knows
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@dataclass(frozen=True)
class Trained:
    """What can be asked, as a person names it: a model, or a base with an adapter.

    Args:
        model: folder of the model or base.
        adapter: folder of the adapter, if there is one.
        run: folder of the run that trained it, where it lies in one.
        is_files: the model's own files were named, which other programs load as they stand, and not the run.
    """

    model: str
    adapter: str | None
    run: Path | None
    is_files: bool = False


def locate_trained(path: str, adapter: str | None = None) -> Trained:
    """Return what is meant by the folder of a run, of a saved step, of a model, or of an adapter.

    Args:
        path: the folder. One with an adapter alone stands for that on the base that it names.
        adapter: the folder of an adapter that was named beside a base.

    Raises:
        CheckpointError: there is no such folder, or nothing to ask in it, or the base is not where the adapter says.
    """
    if adapter is not None:
        return Trained(path, adapter, find_run(adapter))
    folder = expand_path(path)
    has_model = any((place / "model").is_dir() for place in (folder, folder / "latest"))
    adapters = (folder, folder / "adapter", folder / "latest" / "adapter")
    if not has_model and any((place / CONFIG_FILE).is_file() for place in adapters):
        found = find_adapter_dir(folder)
        base = read_adapter_base(found)
        try:
            find_model_dir(base)
        except CheckpointError as error:
            raise CheckpointError(
                f"{found} holds an adapter that was trained beside {base or 'a model it does not name'}, and that is "
                f"not to be found here ({error}). Give both: model_checkpoint=BASE adapter_checkpoint={path}"
            ) from error
        return Trained(base, str(found), find_run(found))
    return Trained(path, None, find_run(folder), (folder / "config.json").is_file())


def find_run(path: str | Path) -> Path | None:
    """Return the folder of the run that a folder is, or lies in, as a saved step and its parts do; None for none."""
    folder = expand_path(path).absolute()
    for place in (folder, *folder.parents[:2]):
        if read_run_record(place) is not None:
            return place
        if (place / "config.yaml").is_file() and (place / "metrics.jsonl").is_file():
            return place
    return None
