"""What the tests with many processes share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_runs import PARAMS, STEPS, Run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts `tune` with arguments in a folder that holds steps.py and mine_params.py."""
    (tmp_path / "mine_params.py").write_text(PARAMS)
    (tmp_path / "steps.py").write_text(STEPS)
    runs: list[Run] = []

    def begin(*words: str) -> Run:
        runs.append(Run(tmp_path, words))
        return runs[-1]

    yield begin
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait(timeout=200)
