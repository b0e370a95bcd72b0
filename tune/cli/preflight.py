"""`tune validate --preflight`: would this configuration start here? Files, device, packages, memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tune.cli.exit_codes import EXIT_BAD_USAGE
from tune.cli.terminal import columns, paint
from tune.config.component import Component
from tune.config.diagnostics import shorten
from tune.config.fields import fields_of
from tune.config.lookup import find_module
from tune.errors import ConfigError, DataError
from tune.utils.paths import expand_path

_PACKAGES = {
    "tune.training.metric_logging.TensorBoardLogger": "tensorboard",
    "tune.training.metric_logging.WandBLogger": "wandb",
}
_TEMPLATE_ENDINGS = (".jinja", ".jinja2", ".j2")
# Arguments that name what has to be there, and whether that is a folder.
_NAMES_FOLDER = {
    "checkpoint_dir": True,
    "adapter_checkpoint": True,
    "prompt_template": False,
    "prompt_file": False,
    **dict.fromkeys(("path", "merges_file", "vocab_path")),
}


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


def refuse_what_is_missing(params: Any) -> None:
    """Raise what a run of `params` would fail from later; nothing is created, and torch is not imported.

    Raises:
        ConfigError: an optional package is not installed.
        DataError: a file or folder is not there, or not of the right kind.
    """
    packages = [check for check in _check_packages(params) if check.ok is False]
    files = [check for check in (*_check_files(params), *_check_output(params)) if check.ok is False]
    lines = [f"{check.about}: {check.text}" for check in (*files, *packages)]
    if lines:
        raise (ConfigError if packages else DataError)("\n".join(lines))


def _components(params: Any) -> Iterator[tuple[str, Component]]:
    for name, value in vars(params).items():
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Component))
        elif isinstance(value, Component) and value:
            yield name, value


def _check_files(params: Any) -> Iterator[Check]:
    shorts = {info.short_for: info.name for info in fields_of(type(params)).values() if info.short_for}
    for name, component in _components(params):
        if not component.path.startswith("tune.") and component.path != "auto":
            continue  # what an argument means there only its author knows
        for argument, value in component.kwargs.items():
            if argument != "checkpoint_dir" or not _goes_on(params):
                about = shorts.get(f"{name}.{argument}", f"{name}.{argument}")
                yield from _check_named(about, argument, value)
        if name.split(".")[0].startswith("dataset"):
            yield from _check_data(name, component.kwargs)
    for name in ("prompt_template", "prompt_file"):
        yield from _check_named(name, name, getattr(params, name, None))


def _check_named(about: str, argument: str, value: Any) -> Iterator[Check]:
    is_path = argument != "prompt_template" or str(value).endswith(_TEMPLATE_ENDINGS)
    if argument in _NAMES_FOLDER and is_path and isinstance(value, str) and value:
        yield _exists(about, value, _NAMES_FOLDER[argument])


def _goes_on(params: Any) -> bool:
    """Tell whether the weights come from a saved step, so that those to start from need not be there any more."""
    output_dir, checkpointer = getattr(params, "output_dir", ""), getattr(params, "checkpointer", None)
    inside = checkpointer.kwargs.get("resume_from_checkpoint") if checkpointer else False
    if not output_dir or not (inside or getattr(params, "resume_from_checkpoint", False)):
        return False
    return next(expand_path(output_dir).glob("step_*"), None) is not None


def _check_data(name: str, given: Mapping[str, Any]) -> Iterator[Check]:
    """Look for a dataset's files where the dataset will."""
    from tune.data.sources import Source

    where = {key: given[key] for key in ("source", "split", "data_files") if given.get(key) is not None}
    if not isinstance(where.get("source"), str) or not where["source"]:
        return  # the builder's own, which is on the hub
    about, source = f"{name}.{'data_files' if 'data_files' in where else 'source'}", Source(**where)
    try:
        if source.is_remote:
            yield Check(
                None, about, f"{source}: fetched when the run starts, by that name on the Hugging Face hub"
            )
        else:
            source.local_files()
            yield Check(True, about, str(source))
    except DataError as error:
        yield Check(False, about, str(error))
    except ConfigError:
        return  # said by whoever reads the data


def _exists(about: str, value: str, folder: bool | None = None) -> Check:
    """Return whether there is a file or folder; `folder` says which of the two it has to be."""
    path = expand_path(value)
    try:
        if not path.exists():
            if path.is_symlink():
                return Check(False, about, f"{path} is a link to {os.readlink(path)}, which is gone")
            hint = (
                "; `tune download` fetches a model from the hub" if about.endswith("model_checkpoint") else ""
            )
            return Check(False, about, f"{path} does not exist (seen from {Path.cwd()}){hint}")
        if folder is True and not path.is_dir() and path.name not in ("latest", "best"):
            return Check(False, about, f"{path} is a file; give the folder that holds it")
        if folder is True and path.is_dir() and os.access(path, os.R_OK) and not any(path.iterdir()):
            return Check(False, about, f"{path} is an empty folder")
        if folder is False and path.is_dir():
            return Check(False, about, f"{path} is a folder, not a file")
    except OSError as error:
        return Check(False, about, f"{shorten(str(path))} cannot be looked at: {error.strerror}")
    return Check(True, about, str(path))


def _check_output(params: Any) -> Iterator[Check]:
    output_dir = getattr(params, "output_dir", "")
    if not output_dir:
        return
    path = expand_path(output_dir)
    try:
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:
        yield Check(False, "output_dir", f"{shorten(str(path))} cannot be looked at: {error.strerror}")
        return
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
        ok, text, details = judged
        yield Check(ok, "memory", text, details)
