"""Where a run takes place: the command that started it, versions, machine, device, and the state of its recipe."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import tune
from tune.utils.paths import get_recipes_dir
from tune.utils.ranks import get_world_size
from tune.utils.secret_masking import mask_arguments

__all__ = ["describe_command", "describe_machine", "describe_recipe", "describe_versions"]

_GIT_TIMEOUT_S = 5.0


def describe_versions() -> dict[str, str | None]:
    """Return the versions of what computes; CUDA is None where torch was built without."""
    return {
        "tune": tune.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def describe_command(arguments: Sequence[str] | None = None) -> str:
    """Return the command line that runs this again, secrets masked.

    Args:
        arguments: the recipe's file and what it was given; None looks at this process's.
    """
    file, *others = sys.argv if arguments is None else arguments
    path = Path(file)
    start = ["python", file]
    if path.suffix == ".py":
        is_ours = path.resolve().parent == get_recipes_dir().resolve()
        count = get_world_size()
        processes = ["--nproc_per_node", str(count)] if count > 1 else []
        start = ["tune", "run", *processes, path.stem if is_ours else file]
    return shlex.join([*start, *mask_arguments(others)])


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the run takes place on: the host, and the device with its name and memory."""
    about: dict[str, Any] = {"type": device.type, "name": _processor(), "memory_gib": _host_memory_gib()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    return {
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "memory_gib": _host_memory_gib(),
        },
        "device": about,
        "processes": get_world_size(),
    }


def describe_recipe(file: str | Path) -> dict[str, Any]:
    """Return a recipe's file, its SHA-256, and where git knows it the commit and whether it differs from that."""
    path = Path(file).resolve()
    about: dict[str, Any] = {"file": str(path), "sha256": None, "git": None}
    with suppress(OSError):
        about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    name = _git(path, "ls-files", "--full-name", "--error-unmatch", "--", path.name)
    if name is not None and (
        state := _git(path, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    ):
        lines = state.splitlines()
        facts = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# ") and " " in line[2:])
        changed = [line for line in lines if not line.startswith("#")]
        about["git"] = {
            "commit": facts.get("branch.oid"),
            "branch": facts.get("branch.head"),
            "recipe_changed": any(line.endswith(f" {name}") for line in changed),
            "tree_changed": bool(changed),
        }
    return about


def _git(path: Path, *arguments: str) -> str | None:
    """Return what git says of a file, None where it has nothing to say; nothing that a repository names is run."""
    command = ["git", "-C", str(path.parent), "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace").strip()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _host_memory_gib() -> float | None:
    with suppress(OSError, ValueError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return None
