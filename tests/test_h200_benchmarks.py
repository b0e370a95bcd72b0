"""The benchmarks for one large GPU run end to end at toy sizes: every contestant, every part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.h200 import parts, train
from benchmarks.h200.contestant import WARM_UP_STEPS, run
from tests import warm_python

TOY = {"size": "tiny", "batch_size": 2, "seq_len": 32, "steps": 2, "compile": False, "device": "cpu"}
CONTESTANTS = [(plan, name) for plan, contestants in train.PLANS.items() for name in contestants]


@pytest.fixture
def compiler_settings():
    """Put back what a contestant, alone in its process, sets for the whole of it."""
    before = torch._dynamo.config.fail_on_recompile_limit_hit
    yield
    torch._dynamo.config.fail_on_recompile_limit_hit = before


@pytest.mark.parametrize(("plan", "name"), CONTESTANTS)
def test_every_contestant_trains(compiler_settings, plan: str, name: str) -> None:
    figures = run(replace(train.PLANS[plan][name], **TOY))
    assert len(set(figures["losses"])) == WARM_UP_STEPS + 2
    assert train.summarize([figures], 1e12, figures["flops_per_token"])["tokens_per_s"] > 0


def test_other_work_gives_no_figures(compiler_settings) -> None:
    figures = run(replace(train.PLANS["full"]["tune, compiled"], **TOY))
    with pytest.raises(SystemExit, match="other work"):
        train.summarize([{**figures, "losses": [3.0]}], 1e12, None)


def test_contestants_run_in_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(train.subprocess, "run", warm_python.run)
    output = tmp_path / "figures.json"
    words = ["adapters", "--device", "cpu", "--toy", "--rounds", "1", "--output", str(output)]
    assert train.main([*words, "--only", "QLoRA"]) == 0
    (result,) = json.loads(output.read_text())["results"].values()
    assert result["share_of_matmul_limit"] > 0
    assert train.main([*words, "--only", "packed"]) == 0
    (result,) = json.loads(output.read_text())["results"].values()
    assert [step["step"] for step in result["steps"]] == list(range(5, 17))
    assert result["tokens_per_s"] > 0


def test_every_part_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert parts.main(["--device", "cpu", "--toy"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert set(results) == set(parts.PARTS)
    assert [name for name, result in results.items() if "error" in result] == []
    assert results["attention_ms"]["MATH"] > 0
