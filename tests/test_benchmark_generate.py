"""The generation benchmark runs, compares equal work, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.generate import main


def test_the_contestants_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    words = [
        "--size",
        "tiny",
        "--rounds",
        "2",
        "--prompt-tokens",
        "9",
        "--new-tokens",
        "7",
        "--batch-size",
        "3",
    ]
    assert main([*words, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert figures == json.loads(capsys.readouterr().out)
    assert set(figures["results"]) == {"tune", "transformers", "tune, no cache"}
    for result in figures["results"].values():
        assert result["same_tokens_as_tune"] == 1.0
        assert result["first_token_s"] > 0
    assert figures["limit_tokens_per_s"] > 0
