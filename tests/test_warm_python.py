"""What is forked from the warmed process behaves as what is started from nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm_python

SAY = """
import json, os, signal, sys
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print(json.dumps([sys.argv, os.getcwd(), os.environ["SAID"], os.getppid(), os.getsid(0) == os.getpid(),
                  sys.stdin.read(), __name__, sys.path[0], ignored]))
print("and this", file=sys.stderr)
sys.exit(7)
"""
WAIT = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize("start_new_session", [False, True])
def test_a_fork_finds_what_a_start_finds(tmp_path: Path, start_new_session: bool) -> None:
    environment = {**os.environ, "SAID": "näh"}
    said = [
        run(
            [sys.executable, "-c", SAY, "a word"],
            cwd=tmp_path,
            env=environment,
            input="read me",
            start_new_session=start_new_session,
            capture_output=True,
            text=True,
        )
        for run in (subprocess.run, warm_python.run)
    ]
    assert said[0].stdout == said[1].stdout
    assert said[0].stderr == said[1].stderr == "and this\n"
    assert said[0].returncode == said[1].returncode == 7
    assert json.loads(said[1].stdout)[3] == os.getpid()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_both_alike(signum: signal.Signals) -> None:
    popens: list[Callable[..., Any]] = [subprocess.Popen, warm_python.Popen]
    for popen in popens:
        process = popen(
            [sys.executable, "-c", WAIT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signum)
        _, err = process.communicate(timeout=120)
        assert process.returncode == -signum
        assert err.startswith('Traceback (most recent call last):\n  File "<string>", line 1') == (
            signum == 2
        )
