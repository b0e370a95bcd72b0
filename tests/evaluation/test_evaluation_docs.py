"""What docs/evaluation.md tells to type is understood as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tune.cli.main import main
from tune.evaluation import metrics

DOC = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ") for line in DOC.splitlines() if line.removeprefix("$ ").startswith("tune ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_docs_are_right(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err


def test_every_metric_stands_in_the_docs() -> None:
    assert len(COMMANDS) > 6
    assert [name for name in metrics.__all__ if f"| `{name}` |" not in DOC] == []
