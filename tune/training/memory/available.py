"""How much memory a process takes, and may still take: of its GPU, or of the host within what its container allows."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["GIB", "available_memory", "get_peak_memory_gib", "held_memory"]

GIB = 1024**3

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may have in all from now on; None where that cannot be found out.

    On a GPU: what is free, and what torch holds already. On the host: what the kernel calls available, no more than
    the container's limit leaves, shared among the processes that the launcher started on this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    left = [1024 * kib for name, kib in _fields_of(_PROC / "meminfo").items() if name == "MemAvailable"]
    left += _left_in_cgroups()
    # torchrun and our own launcher say how many share the machine.
    return min(left) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if left else None


def held_memory(device: torch.device) -> int:
    """Return the bytes in use now: allocated by torch on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        # statm(5): the second number counts resident pages.
        return int((_PROC / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def get_peak_memory_gib(device: torch.device) -> float:
    """Return the most memory in use so far, in GiB: allocated on `device` if it is a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes (getrusage(2) of each).
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def _left_in_cgroups() -> Iterator[int]:
    """Yield what each limit above this process leaves (cgroups(7)); the page cache can be given back."""
    try:
        rows = [row.split(":", 2) for row in (_PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if controllers == "":  # version 2
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's: what is mounted at the root is then the container's own.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            limit, usage = _number_in(folder / names[0]), _number_in(folder / names[1])
            # Version 1 writes no limit as a huge one.
            if folder.is_relative_to(root) and limit is not None and usage is not None and limit < 2**60:
                yield max(limit - usage + _fields_of(folder / "memory.stat").get(names[2], 0), 0)


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _fields_of(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines that name one each; {} where it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
        return {row[0].rstrip(":"): int(row[1]) for row in rows}
    except (OSError, ValueError, IndexError):
        return {}
