"""Which process this is, as the launcher told it through the environment."""

from __future__ import annotations

import os


def get_rank() -> int:
    """Return this process's number among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def get_world_size() -> int:
    """Return the number of processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def get_local_rank() -> int:
    """Return this process's number among those of this machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_local_world_size() -> int:
    """Return the number of processes of the run on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Tell whether this process is the one that logs and writes."""
    return get_rank() == 0
