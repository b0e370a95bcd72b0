"""Memory: its peak (of the GPU where there is one, else of the host), and what to do when there is too little."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tune.errors import TrainingError

__all__ = ["explain_out_of_memory", "get_peak_memory_gib", "get_peak_rss_gib", "reset_peak_memory"]

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


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn the body's running out of memory, of a GPU or the host, into an error that says what helps.

    Raises:
        TrainingError: in place of torch's own error; its first sentence is kept.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        # Two sentences tell what was asked for; the rest, and a prefix on the CPU, are for developers of torch.
        first = ". ".join((text.partition("DefaultCPUAllocator: ")[2] or text).split(". ")[:2])
        raise TrainingError(
            f"out of memory: {first}. What helps, in this order: a smaller batch_size with more "
            "gradient_accumulation_steps; enable_activation_checkpointing=true; a smaller tokenizer.max_seq_len; "
            "dtype=bf16; optimizer_in_bwd=true; on a GPU, enable_activation_offloading=true."
        ) from error


def reset_peak_memory(device: torch.device) -> None:
    """Start the GPU's peak anew; the host's peak is the kernel's and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
