"""The file that says exactly what ran, and runs it again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import yaml

import tune.config
from tune.config.component import Component
from tune.errors import CheckpointError

__all__ = ["write_resolved_config"]


def write_resolved_config(params: Any, path: Path) -> None:
    """Write every parameter with its value, and, where the params came from a config, where it was set.

    Args:
        params: a params object; built in Python, it is written without provenance.
        path: the YAML file; feeding it back reproduces the run.

    Raises:
        CheckpointError: the file cannot be written.
    """
    resolution = tune.config.resolution_of(params)
    if resolution is not None:
        text = resolution.dump()
    else:
        values = {field.name: _plain(getattr(params, field.name)) for field in dataclasses.fields(params)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    staged = path.with_name(path.name + ".partial")
    try:
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}.") from error


def _plain(value: Any) -> Any:
    """Return the value as YAML writes it; an unset component is null."""
    if isinstance(value, Component):
        return value.to_mapping() if value else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
