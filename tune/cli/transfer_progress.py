"""How far a transfer is: a bar on a terminal, a line for each file anywhere else."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tune.config.diagnostics import printable

if TYPE_CHECKING:
    from tqdm import tqdm


def format_size(num_bytes: int) -> str:
    """Return a size as people read it: "12.6 GB", "609 B"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def byte_bar(num_bytes: int) -> tqdm[Any]:
    """Return a bar of so many bytes on standard error, which shows nothing where that is no terminal."""
    from tqdm import tqdm

    return tqdm(total=num_bytes, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, disable=None)


def file_lines(num_files: int) -> Callable[[str], None]:
    """Return what writes a numbered line for each file that is done, given its name and what is to say of it."""
    numbers = itertools.count(1)

    def tell(file: str) -> None:
        sys.stderr.write(f"  [{next(numbers)}/{num_files}] {printable(file)}\n")
        sys.stderr.flush()

    return tell
