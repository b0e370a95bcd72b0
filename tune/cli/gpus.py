"""How many GPUs there are, without torch where the answer can be read off the system."""

from __future__ import annotations

import os
import re

from tune.cli.torch_logging import importing_quietly


def count_gpus() -> int:
    """Return how many GPUs torch will see; torch itself is asked only where the system shows none."""
    try:
        installed = sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir("/dev"))
    except OSError:
        installed = 0
    if installed:
        return count_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), installed)
    with importing_quietly():  # a launcher's process, as a rule
        import torch  # other makers' GPUs, and systems where they are no files

    return torch.cuda.device_count()


def count_visible(listed: str | None, installed: int) -> int:
    """Return how many of `installed` GPUs the variable CUDA_VISIBLE_DEVICES leaves visible.

    The list counts up to its first entry that is no GPU, as CUDA reads it.
    """
    if listed is None:
        return installed
    count = 0
    for entry in map(str.strip, listed.split(",")):
        is_number = entry.isascii() and entry.isdecimal() and int(entry) < installed
        if not is_number and not entry.startswith(("GPU-", "MIG-")):
            break
        count += 1
    return count
