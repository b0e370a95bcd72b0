"""Data sets on the hub are explained in the words that models are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (
            403,
            "GatedRepo",
            ["the dataset some/data is gated", "accept them at {url}/datasets/some/data", "HF_TOKEN"],
        ),
        (418, "", ["refused the request (HTTP 418)", "Without network, give a local json"]),
    ],
)
def test_what_is_said_when_the_hub_refuses(
    hub: HubServer, tmp_path: Path, status: int, code: str, expected: list[str]
) -> None:
    pytest.importorskip("datasets")
    hub.fail("/", "status", status=status, times=10_000, headers={"X-Error-Code": code, "Retry-After": "0"})
    code_line = (
        "from tune.data.hub import read_hub\nfrom tune.errors import DataError\n"
        "try:\n    list(read_hub('some/data', 'train', None, None))\nexcept DataError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    outcome = subprocess.run(
        [sys.executable, "-c", code_line], env=environment, capture_output=True, text=True
    )
    for words in expected:
        assert words.format(url=hub.url) in outcome.stdout, outcome.stdout + outcome.stderr
    assert "--hf-token" not in outcome.stdout
