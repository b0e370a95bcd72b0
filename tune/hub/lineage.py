"""What a saved model was made from and how: read from the run that saved it."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from tune.checkpoints.config_fields import read_json
from tune.checkpoints.locate import find_model_dir
from tune.errors import CheckpointError, TuneError
from tune.hub.download import read_origin
from tune.hub.upload_files import is_local
from tune.utils.paths import BUNDLED_PREFIX, expand_path

__all__ = ["Base", "Lineage", "read_lineage"]

_LICENSE_KEYS = ("license", "license_name", "license_link")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
# A run that went on from a run that went on from ...: far enough.
_MAX_ANCESTORS = 8
_MAX_BYTES = 50_000_000


@dataclass(frozen=True)
class Base:
    """The model a training started from.

    Args:
        name: what people call it; never a path.
        repo: owner/name on the hub, if that is known.
        license: the license fields of its card's front matter, if it lies beside the weights.
    """

    name: str
    repo: str | None = None
    license: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """How a saved step came about.

    Args:
        step: the optimizer step it was saved after, or None for a model of no run.
        config: the run's resolved config, as plain values; empty if there is none.
        metrics: the values logged at that step, or last before it.
        base: what the run started from; None if it is unknown or there is none.
    """

    step: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    base: Base | None = None


def read_lineage(output_dir: Path | None, step: int | None, base_model: str | None) -> Lineage:
    """Return how the step `step` of the run in `output_dir` came about.

    Args:
        output_dir: the run's output directory; None for a model of no run.
        step: the saved step.
        base_model: owner/name that a person states; goes before what the run knows.
    """
    config = _read_config(output_dir) if output_dir is not None else {}
    base = _base_of(config, 0)
    if base_model is not None:
        base = Base(base_model, base_model, base.license if base and base.repo == base_model else {})
    return Lineage(step, config, _read_metrics(output_dir, step) if output_dir is not None else {}, base)


def _read_text(path: Path) -> str:
    """Return what a file says; nothing for one that is not there or cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _read_config(output_dir: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read_text(output_dir / "config.yaml"))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_metrics(output_dir: Path, step: int | None) -> dict[str, Any]:
    """Return the newest value of every metric logged up to `step`."""
    found: dict[str, Any] = {}
    for line in _read_text(output_dir / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a killed run may leave half a line
            record = json.loads(line)
            if step is None or record["step"] <= step:
                found.update(record)
    return found


def _base_of(config: dict[str, Any], depth: int) -> Base | None:
    """Return what the run of `config` started from, through runs that went on from runs."""
    checkpointer = config.get("checkpointer")
    place = checkpointer.get("checkpoint_dir") if isinstance(checkpointer, dict) else None
    if not isinstance(place, str) or config.get("train_from_scratch") is True:
        return None
    if place.startswith(BUNDLED_PREFIX):
        return Base(f"{place.removeprefix(BUNDLED_PREFIX)}, which comes with tune")
    try:
        folder = find_model_dir(place).resolve()
    except TuneError:  # moved or deleted since: its name is left
        folder = expand_path(place)
    for candidate in (folder, folder.parent):  # Meta's weights lie in original/
        origin = read_origin(candidate)
        if origin is not None:
            return Base(origin.repo, origin.repo, _read_license(candidate))
    if cached := _CACHED.search(folder.as_posix()):
        repo = f"{cached[1]}/{cached[2]}"
        return Base(repo, repo, _read_license(folder))
    earlier = folder.parent.parent
    if folder.parent.name.startswith("step_") and depth < _MAX_ANCESTORS:
        base = _base_of(_read_config(earlier), depth + 1)
        if base is not None:
            return base
    noted = _noted_place(folder)
    return Base(noted, noted, _read_license(folder)) if noted else Base(f"{folder.name} (a local folder)")


def _noted_place(folder: Path) -> str | None:
    """Return the hub name that config.json says the model was loaded from, if it says one."""
    try:
        noted = read_json(folder / "config.json").get("_name_or_path")
    except CheckpointError:
        return None
    return noted if isinstance(noted, str) and not is_local(noted) else None


def _read_license(folder: Path) -> dict[str, Any]:
    try:
        content = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: str(content[key]) for key in _LICENSE_KEYS if isinstance(content.get(key), str)}
