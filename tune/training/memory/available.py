"""How much memory a process may still take: of its GPU, or of the host within what its container allows."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["available_memory", "held_memory"]

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
    available = _host_available()
    left = [number for number in (available, *_left_in_cgroups()) if number is not None]
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


def _host_available() -> int | None:
    try:
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _left_in_cgroups() -> list[int]:
    """Return what each limit above this process leaves (cgroups(7)); the page cache can be given back."""
    left = []
    for folder, limit_name, usage_name, cache_name in _cgroup_files():
        limit, usage = _number_in(folder / limit_name), _number_in(folder / usage_name)
        if limit is None or usage is None or limit >= 2**60:  # version 1 writes no limit as a huge one
            continue
        left.append(max(limit - usage + _cache_in(folder / "memory.stat", cache_name), 0))
    return left


def _cgroup_files() -> list[tuple[Path, str, str, str]]:
    try:
        rows = [row.split(":", 2) for row in (_PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    files = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        version_2 = controllers == ""
        if not version_2 and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS if version_2 else _CGROUPS / "memory"
        names = (
            ("memory.max", "memory.current")
            if version_2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        cache = "inactive_file" if version_2 else "total_inactive_file"
        # Inside a container the path may be the host's: what is mounted at the root is then the container's own.
        own = root / path.lstrip("/")
        folders = [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]
        files += [(folder, *names, cache) for folder in folders if (folder / names[0]).is_file()]
    return files


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _cache_in(path: Path, name: str) -> int:
    try:
        rows = dict(row.split() for row in path.read_text().splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
