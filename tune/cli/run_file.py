"""Running a recipe's file inside this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from tune.cli.exit_codes import exit_code_of
from tune.cli.recipe_lookup import add_to_path
from tune.cli.signal_resend import resending_swallowed_signals


def run_file(file: Path, arguments: Sequence[str], *, is_own: bool) -> None:
    """Run `file` as `python FILE ARGUMENTS` does; whatever it ends with comes out as the exception that it is."""
    path = str(file.resolve() if is_own else file)
    if is_own:
        add_to_path(file)
    before = sys.argv
    sys.argv = [path, *arguments]
    try:
        with resending_swallowed_signals():
            runpy.run_path(path, run_name="__main__")
    except TypeError as error:
        from tune.config.recipe_main import explain_params  # only on the way to an error

        if (explained := explain_params(error)) is not None:
            raise explained from error
        raise
    finally:
        sys.argv = before


def execute(file: Path, arguments: Sequence[str], *, is_own: bool) -> int:
    """Run `file`, report what it ends with, and return its exit code."""
    try:
        run_file(file, arguments, is_own=is_own)
        return 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - whatever a recipe ends with
        return exit_code_of(error, file.resolve() if is_own else None)
