"""Standard streams that are closed, full, or that nobody reads: what was asked for is done, and the code says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shell(line: str) -> tuple[int, str]:
    """Return the code of a shell's line in which $TUNE is the command, and what it wrote to standard error."""
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TUNE": f"{sys.executable} -m tune"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$TUNE ls >&-", 0),
        ("$TUNE ls 2>&- <&-", 0),
        ("$TUNE ls >&- 2>&- <&-", 0),
        ("$TUNE nonsense 2>&-", 2),
        ("$TUNE nonsense 2>/dev/full", 2),
        ("set -o pipefail; $TUNE describe full_finetune | true", 141),
        ("set -o pipefail; $TUNE nonsense 2>&1 | true", 2),
    ],
)
def test_a_stream_that_is_not_there_changes_nothing(line: str, code: int) -> None:
    assert shell(line) in ((code, ""), (0 if code == 141 else code, ""))  # a pipe's buffer may take all of it


def test_a_full_disk_is_said() -> None:
    assert shell("$TUNE ls >/dev/full") == (1, "error: output: No space left on device\n")


def test_a_recipe_of_ones_own_runs_without_streams(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys, tune.config\n"
        "@tune.config.parse\n"
        "def main(params):\n"
        f"    open({str(tmp_path / 'done')!r}, 'w').write(params.word)\n"
        "    print('done')\n"
        "    sys.stderr.write('done')\n"
        "main()\n"
    )
    assert shell(f"{sys.executable} {file} word=yes >&- 2>&- <&-") == (0, "")
    assert (tmp_path / "done").read_text() == "yes"
