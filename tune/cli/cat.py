"""`tune cat`: print a config (or a recipe) as it stands."""

from __future__ import annotations

import sys
from pathlib import Path

from tune.cli.arguments import Command, Given, UsageError
from tune.cli.catalogue import find_source
from tune.cli.terminal import say


def run(given: Given) -> int:
    """Print one config or recipe."""
    file, _ = find_source(given.operands[0])
    text = read_file(file)
    if sys.stdout.isatty():
        say(text)
    else:
        sys.stdout.write(text)
    return 0


def read_file(file: Path) -> str:
    """Return the text of `file`.

    Raises:
        UsageError: it cannot be read, or is not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


COMMAND = Command(
    name="cat",
    summary="Print a config or a recipe.",
    description="Prints the file as it stands, to read it or to pipe it somewhere.",
    examples=(
        ("tune cat llama2/7B_full", "a config that comes with tune"),
        ("tune cat full_finetune | less", "a recipe"),
    ),
    run=run,
    operands=(("CONFIG|RECIPE", "A name from `tune ls`, or a path to a config."),),
)
