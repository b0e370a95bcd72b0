"""Importing torch where nothing but an error of its C++ parts is to be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LEVEL = "TORCH_CPP_LOG_LEVEL"


@contextmanager
def importing_quietly() -> Iterator[None]:
    """Where torch is imported in here, its C++ parts report nothing below an error, unless the user set their level.

    Machines leave a run one after the other, and the last ones find the store of the first gone: torch catches that,
    after it has written a page of C++ frames. Ranks import torch for themselves, with the environment as it was.
    """
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "ERROR"
    try:
        yield
    finally:
        del os.environ[_LEVEL]


def count_gpus() -> int:
    """Return how many GPUs torch sees; for a launcher, which imports torch anyway."""
    with importing_quietly():
        import torch

    return torch.cuda.device_count()
