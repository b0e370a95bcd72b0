"""Data sets on the hub are explained in the words that models are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]


READ = """
from tune.data.hub import read_hub
from tune.errors import DataError
for name in ("some/data", "other/data"):
    try:
        list(read_hub(name, "train", None, None).unmade())
    except DataError as error:
        print(error, end="\\0")
"""


def test_what_is_said_when_the_hub_refuses(hub: HubServer, tmp_path: Path) -> None:
    """`datasets` is told of the hub when it is imported: in a process of its own."""
    pytest.importorskip("datasets")
    for part, status, code in (("some/data", 403, "GatedRepo"), ("other/data", 418, "")):
        headers = {"X-Error-Code": code, "Retry-After": "0"}
        hub.fail(part, "status", status=status, times=10_000, headers=headers)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    outcome = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True)
    gated, refused, _ = outcome.stdout.split("\0")
    assert "the dataset some/data is gated" in gated
    assert f"accept them at {hub.url}/datasets/some/data" in gated
    assert "HF_TOKEN" in gated
    assert "refused the request (HTTP 418)" in refused
    assert "Without network, give a local json" in refused
    assert "--hf-token" not in outcome.stdout
