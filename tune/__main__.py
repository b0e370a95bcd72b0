"""`python -m tune`, the same as the command `tune`."""

from __future__ import annotations

import sys
from pathlib import Path


def _leave_working_directory() -> None:
    """Take the working directory off the import path, as the command `tune` has it.

    `python -m` puts it first, so a file called torch.py or yaml.py that came along with a config would be
    imported in place of the package. Where the clone itself is the working directory, it stays.
    """
    first = sys.path[0] if sys.path else ""
    home = Path(__file__).resolve().parent.parent
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted; main says so
        here = Path(first)
    if Path(first or here).resolve() == here != home:
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_directory()
    from tune.cli.main import main

    sys.exit(main())
