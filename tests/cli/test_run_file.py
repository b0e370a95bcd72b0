"""A request to stop is heeded wherever it meets Python, and is never called a bug."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune.cli.exit_codes import exit_code_of
from tune.cli.rank import _kind_of
from tune.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
# A signal arrives while a weak reference's callback runs: what its handler raises is lost there.
STOPPED_IN_A_CALLBACK = """
import signal, sys, time, weakref

class Thing:
    pass

def gone(reference):
    signal.raise_signal(getattr(signal, sys.argv[1]))
    print("heard nothing")

signal.signal(signal.SIGINT, signal.default_int_handler)
thing = Thing()
reference = weakref.ref(thing, gone)
del thing
print("went on", flush=True)
time.sleep(20)
"""
EXECUTE = "import sys; from pathlib import Path; from tune.cli.run_file import Program, execute; "
EXECUTE += "sys.exit(execute(Program(Path('recipe.py'), True, sys.argv[1:])))"


def execute(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", EXECUTE, name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_exit_in_a_callback_is_left_to_python(tmp_path: Path) -> None:
    recipe = "class Thing:\n    def __del__(self): raise SystemExit(['lost'])\nThing()\nprint('went on')\n"
    (tmp_path / "recipe.py").write_text(recipe)
    done = execute(tmp_path, "")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    assert "SystemExit: ['lost']" in done.stderr


def test_ctrl_c_in_a_callback_stops_the_run_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(STOPPED_IN_A_CALLBACK)
    done = execute(tmp_path, "SIGINT")
    assert (done.returncode, done.stdout) == (130, "went on\n"), done.stderr
    assert "ignored" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_else_is_lost_is_still_told(tmp_path: Path) -> None:
    program = STOPPED_IN_A_CALLBACK.replace("signal.raise_signal(getattr", "print(getattr").replace("20", "0")
    (tmp_path / "recipe.py").write_text(program)
    done = execute(tmp_path, "SIGNONE")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "has no attribute 'SIGNONE'" in done.stderr


@pytest.mark.parametrize(
    ("behind", "code", "kind"),
    [
        (KeyboardInterrupt(), 130, "aborted"),
        (SystemExit(143), 143, "aborted"),
        (SystemExit(1), 70, "failed"),
        (KeyError("missing"), 70, "failed"),
    ],
)
def test_what_a_library_makes_of_a_stop_is_no_bug(
    behind: BaseException, code: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an extension in C++ whose import is interrupted: ImportError, and what was raised behind it."""
    error = ImportError("initialization failed")
    error.__cause__ = behind
    assert exit_code_of(error) == code
    assert _kind_of(error, code) == kind
    assert ("this is a bug" in capsys.readouterr().err) == (code == 70)
    explained = CheckpointError("the disk is full")
    explained.__context__ = behind
    assert exit_code_of(explained) == 1
    assert _kind_of(explained, 1) == "failed"
