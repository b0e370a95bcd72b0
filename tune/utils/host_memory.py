"""What the host does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["return_freed_memory"]

# mallopt(3), malloc.h of glibc
_M_MMAP_THRESHOLD = -3


def return_freed_memory(threshold: int = 2**20) -> bool:
    """Have the system take back every piece of at least `threshold` bytes at once when it is freed.

    glibc otherwise keeps pieces as large as those it has seen freed before, up to 32 MiB, for later use: weights that
    are gathered block by block then stay resident many times over. Each such piece costs page faults instead.

    Returns:
        Whether the system's memory allocator knows how; only glibc's does.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, threshold) == 1
