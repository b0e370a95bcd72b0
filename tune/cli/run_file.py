"""Running a recipe's file inside this process."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.exit_codes import exit_code_of
from tune.cli.recipe_lookup import add_to_path

if TYPE_CHECKING:
    from tune.config.resolution import Resolution

_AGAIN_AFTER_S = 0.05


@dataclass(frozen=True)
class Program:
    """A recipe's file, and what it is run with.

    Args:
        file: the recipe's file.
        is_own: whether it is the user's.
        arguments: the command line for it.
        resolution: what these arguments have been resolved to; None leaves it to the recipe.
        trusted: the packages that the user lets a config name.
    """

    file: Path
    is_own: bool
    arguments: list[str]
    resolution: Resolution[Any] | None = None
    trusted: tuple[str, ...] = ()

    @property
    def own_file(self) -> Path | None:
        """The file where it is the user's, and so are the bugs in it."""
        return self.file.resolve() if self.is_own else None


def run_file(program: Program) -> None:
    """Run the file as `python FILE ARGUMENTS` does; whatever it ends with comes out as the exception that it is."""
    from tune.config.resolution import handing_over
    from tune.config.trust import trust

    path = str(program.own_file or program.file)
    if program.is_own:
        add_to_path(program.file)
    trust(*program.trusted)
    before = sys.argv
    sys.argv = [path, *program.arguments]
    try:
        with handing_over(program.resolution, program.arguments), _repeating_lost_interrupts():
            runpy.run_path(path, run_name="__main__")
    except TypeError as error:
        from tune.config.recipe_main import explain_params  # only on the way to an error

        if (explained := explain_params(error)) is not None:
            raise explained from error
        raise
    finally:
        sys.argv = before


def execute(program: Program) -> int:
    """Run the file, report what it ends with, and return its exit code."""
    try:
        run_file(program)
        return 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - whatever a recipe ends with
        return exit_code_of(error, program.own_file)


@contextmanager
def _repeating_lost_interrupts() -> Iterator[None]:
    """In here Ctrl-C is sent again where the KeyboardInterrupt was lost.

    Inside a weak reference's callback or a `__del__`, which run at every turn, Python prints what is raised
    (`Exception ignored in ...`) and goes on as if nothing had been.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            before(unraisable)
            return
        # Later, by a thread: sent from here it would be raised in here, and be lost once more.
        again = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
