"""The command line, run in this process: much faster than a new one for each question."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.components import trusting
from tune.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str


Tune = Callable[..., Outcome]


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Run `tune` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with trusting():  # what --trust allows ends with the command
            code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


RECIPE = """
import sys
import tune.config
from tune.recipes.params.generate import GenerateParams
from tune.errors import DataError

@tune.config.parse
def recipe_main(params: GenerateParams) -> int:
    print("ran with", params.prompt, params.max_new_tokens)
    if params.prompt == "explained":
        raise DataError("no examples\\nadd some")
    if params.prompt == "bug":
        {}["missing"]
    if params.prompt == "exit":
        sys.exit(7)
    if params.prompt == "text":
        sys.exit("goodbye")
    if params.prompt == "interrupt":
        raise KeyboardInterrupt
    if params.prompt == "memory":
        raise MemoryError("all used up")
    return 0

if __name__ == "__main__":
    sys.exit(recipe_main())
"""


@pytest.fixture
def own_recipe(tmp_path: Path) -> Path:
    """A user's recipe with the params of `generate`, which ends as its prompt says."""
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    return file
