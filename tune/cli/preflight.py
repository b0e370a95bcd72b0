"""`tune validate --preflight`: would this configuration start here? Files, device, packages, memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tune.cli.exit_codes import EXIT_BAD_USAGE
from tune.cli.terminal import columns, paint
from tune.config.component import Component
from tune.config.lookup import find_module
from tune.utils.paths import expand_path

_PACKAGES = {
    "tune.training.metric_logging.TensorBoardLogger": "tensorboard",
    "tune.training.metric_logging.WandBLogger": "wandb",
}
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".tsv")


@dataclass(frozen=True)
class Check:
    """One thing looked at: `ok` is None where this machine cannot tell. Details are lines for below the table."""

    ok: bool | None
    about: str
    text: str
    details: tuple[str, ...] = ()


def preflight(params: Any, stream: TextIO | None = None) -> int:
    """Print what this machine lacks for `params`; return 0, or 2 if the run could not start."""
    out = stream or sys.stdout
    checks = [*_check_files(params), *_check_output(params), *_check_packages(params), *_check_device(params)]
    marks = {True: "ok", False: paint("missing", "red", out), None: "?"}
    out.write(columns([(marks[check.ok], check.about, check.text) for check in checks], gap=3) + "\n")
    for check in checks:
        if check.details:
            out.write("\n" + "\n".join(check.details) + "\n")
    return EXIT_BAD_USAGE if any(check.ok is False for check in checks) else 0


def _components(params: Any) -> Iterator[tuple[str, Component]]:
    for name, value in vars(params).items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Component) and item:
                yield name, item


def _check_files(params: Any) -> Iterator[Check]:
    for name, component in _components(params):
        for argument, value in component.kwargs.items():
            if argument in ("checkpoint_dir", "path") and isinstance(value, str):
                yield _exists(f"{name}.{argument}", value)
            elif argument in ("source", "data_files"):
                for item in value if isinstance(value, (list, tuple)) else [value]:
                    yield from _check_source(f"{name}.{argument}", item)
    prompt_file = getattr(params, "prompt_file", None)
    if prompt_file:
        yield _exists("prompt_file", prompt_file)


def _check_source(about: str, value: Any) -> Iterator[Check]:
    if not isinstance(value, str) or value in ("json", "csv", "parquet", "text"):
        return
    looks_local = value.endswith(_FILE_ENDINGS) or value.startswith((".", "/", "~", "bundled:"))
    if looks_local or expand_path(value).exists():
        yield _exists(about, value)
    else:
        yield Check(None, about, f"{value}: a name on the Hugging Face hub, fetched when the run starts")


def _exists(about: str, value: str) -> Check:
    path = expand_path(value)
    if os.path.exists(path):
        return Check(True, about, str(path))
    return Check(False, about, f"{path} does not exist (seen from {Path.cwd()})")


def _check_output(params: Any) -> Iterator[Check]:
    output_dir = getattr(params, "output_dir", "")
    if not output_dir:
        return
    path = expand_path(output_dir)
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not folder.is_dir():
        yield Check(False, "output_dir", f"{folder} is a file, so nothing can be written below it")
    elif not os.access(folder, os.W_OK):
        yield Check(False, "output_dir", f"{folder} cannot be written to")
    else:
        free = shutil.disk_usage(folder).free / 2**30
        weights = _checkpoint_gib(params)
        needed = f"; a saved step takes about {3 * weights:.1f} GiB or more" if weights else ""
        ok = None if weights and free < 3 * weights else True
        yield Check(ok, "output_dir", f"{free:.0f} GiB free{needed}")


def _checkpoint_gib(params: Any) -> float:
    """Return the size of the weights to start from in GiB, 0 where that is not known."""
    directory = params.checkpointer.kwargs.get("checkpoint_dir") if hasattr(params, "checkpointer") else None
    if not isinstance(directory, str):
        return 0.0
    folder = expand_path(directory)
    for pattern in ("*.safetensors", "*.bin", "*.pth"):
        sizes = [file.stat().st_size for file in folder.glob(pattern)] if folder.is_dir() else []
        if sizes:
            return sum(sizes) / 2**30
    return 0.0


def _check_packages(params: Any) -> Iterator[Check]:
    paths = [component.path for _, component in _components(params)]
    wanted = {_PACKAGES.get(path, path.partition(".")[0]) for path in paths} - {"tune"} | {"torch"}
    for package in sorted(wanted):
        found = find_module(package) is not None
        yield Check(found, package, "installed" if found else f"not installed: pip install {package}")


def _check_device(params: Any) -> Iterator[Check]:
    if not hasattr(params, "device") or find_module("torch") is None:
        return
    from tune.errors import TuneError
    from tune.utils.device import get_device

    try:
        device = get_device(params.device)
    except TuneError as error:
        yield Check(False, "device", str(error))
        return
    yield Check(True, "device", str(device))
    from tune.cli.preflight_memory import judge_memory

    judged = judge_memory(params, device)
    if judged is not None:
        yield Check(judged.ok, "memory", judged.text, judged.details)
