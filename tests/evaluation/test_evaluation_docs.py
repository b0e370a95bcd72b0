"""docs/evaluation.md knows every metric."""

from __future__ import annotations

from pathlib import Path

from tune.evaluation import metrics

DOC = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def test_every_metric_stands_in_the_docs() -> None:
    told = DOC.read_text(encoding="utf-8")
    assert [name for name in metrics.__all__ if f"| `{name}` |" not in told] == []
