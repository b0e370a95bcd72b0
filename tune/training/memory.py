"""Peak memory of this process: of the GPU where there is one, else of the host."""

from __future__ import annotations

import resource
import sys

import torch

__all__ = ["get_peak_memory_gib", "get_peak_rss_gib", "reset_peak_memory"]

GIB = 1024**3


def get_peak_memory_gib(device: torch.device) -> float:
    """Return the most memory in use so far, in GiB: allocated on `device` if it is a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return get_peak_rss_gib()


def get_peak_rss_gib() -> float:
    """Return the largest resident set this process has had, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes (getrusage(2) of each).
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def reset_peak_memory(device: torch.device) -> None:
    """Start the GPU's peak anew; the host's peak is the kernel's and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
