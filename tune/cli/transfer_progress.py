"""What is said of files on their way: sizes, and a line for each that is done."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

from tune.cli.terminal import say
from tune.config.diagnostics import printable


def format_size(num_bytes: int) -> str:
    """Return a size as people read it: "12.6 GB", "609 B"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def file_lines(num_files: int) -> Callable[[str], None]:
    """Return what writes a numbered line for each file that is done, given its name and what is to say of it."""
    numbers = itertools.count(1)

    def tell(file: str) -> None:
        say(f"  [{next(numbers)}/{num_files}] {printable(file)}\n", sys.stderr)
        sys.stderr.flush()

    return tell
