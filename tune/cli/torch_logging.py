"""Keeping torch's launcher from telling in pages what we say in a line."""

from __future__ import annotations

import logging
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


def silence_elastic() -> None:
    """Keep the agent's log to itself, unless it was asked for: it says in forty lines what we say in one."""
    if "LOGLEVEL" not in os.environ:
        logger = logging.getLogger("torch.distributed")
        for handler in list(logger.handlers):  # torch puts its own here
            logger.removeHandler(handler)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
