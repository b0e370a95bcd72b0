"""What the lm-evaluation-harness returns, in the form of our own evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.evaluation.scores import Outcome

__all__ = ["read_results"]


def read_results(found: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Outcome]]:
    """Return the scores in what `simple_evaluate` returns, by `task/metric`; and what became of each document."""
    scores: dict[str, dict[str, Any]] = {}
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric} ({kind})"
            spread = results.get(f"{metric}_stderr,{kind}")
            scores[name] = {"value": float(value), "count": _count(found, task)}
            if isinstance(spread, float):
                scores[name]["stderr"] = spread
    return scores, [
        _outcome(task, sample) for task, samples in found["samples"].items() for sample in samples
    ]


def _count(found: Mapping[str, Any], task: str) -> int:
    """Return the documents of a task; of a group those of all its tasks."""
    members = found.get("group_subtasks", {}).get(task) or [task]
    return sum(found["n-samples"][each]["effective"] for each in members if each in found["n-samples"])


def _outcome(task: str, sample: Mapping[str, Any]) -> Outcome:
    kind = sample.get("filter", "none")
    end = "" if kind == "none" else f" ({kind})"
    names = [name for name in sample.get("metrics", ()) if isinstance(sample.get(name), (int, float))]
    asked = sample["arguments"][0][0] if sample.get("arguments") else ""
    return Outcome(
        f"{task}:{sample['doc_id']}{end}",
        prompt=asked if isinstance(asked, str) else "",
        reference=str(sample.get("target", "")),
        answer=str(sample.get("filtered_resps", "")),
        scores={f"{task}/{name}{end}": float(sample[name]) for name in names},
    )
