"""The launcher's temporary folder, and those of launchers that were killed."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from tune.cli.run_dir import make_run_dir


def test_what_killed_launchers_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, held, new, other = (
        tmp_path / name for name in ("tune_run_left", "tune_run_held", "tune_run_new", "x")
    )
    for folder in (left, held, new, other):
        folder.mkdir()
        (folder / "lock").touch()
        if folder != new:
            os.utime(folder, (0, 0))
    with open(held / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with make_run_dir() as mine:
            assert set(tmp_path.iterdir()) == {held, new, other, mine}
    assert set(tmp_path.iterdir()) == {held, new, other}
