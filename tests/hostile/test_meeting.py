"""What may answer at the place where machines meet, and is no tune: one line, in the time that was set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """A listener that never says a word, a web server, and a host that does not exist."""
    silent = socket.create_server(("127.0.0.1", 0), backlog=50)
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield {
        "silent": f"127.0.0.1:{silent.getsockname()[1]}",
        "web": f"127.0.0.1:{web.server_port}",
        "unknown": "no-such-host.invalid:29400",
    }
    silent.close()
    web.shutdown()
    web.server_close()


def test_join_timeout_is_kept(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('started')")
    attempts = [("silent", ()), ("web", ()), ("unknown", ()), ("silent", ("--node_rank", "1"))]
    runs = []
    for place, words in attempts:
        meeting = ("--nnodes", "2", "--rdzv_endpoint", places[place], "--rdzv_conf", "join_timeout=3", *words)
        runs.append(
            warm_python.Popen(
                [sys.executable, "-m", "tune", "run", *meeting, "mine.py"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for (place, _), run in zip(attempts, runs, strict=True):
            _, said = run.communicate(timeout=120)  # torch alone would wait longer
            waiting, error = said.splitlines()
            assert run.returncode == 1
            assert waiting == f"Waiting for 2 machines at {places[place]}."
            assert error.startswith("error: ")
            assert places[place].partition(":")[0] in error
    finally:
        for run in runs:
            run.kill()
