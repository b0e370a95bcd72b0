"""Standard streams that are closed, or that take nothing any more."""

from __future__ import annotations

import os
import sys

__all__ = ["open_closed_streams", "silence"]


def open_closed_streams() -> None:
    """Put the null device where this process was started without a standard stream (`>&-`).

    Else the next file that is opened takes its number, and gets what was meant for the terminal.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            silence(descriptor)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def silence(descriptor: int) -> None:
    """Let what is written to this descriptor go nowhere, here and in processes that inherit it."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    else:
        os.set_inheritable(descriptor, True)
