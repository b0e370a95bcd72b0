"""What runs on pairs of answers have left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

NUM_PAIRS = 13  # an odd number: the last step has fewer, and with two processes one of them has none


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def weights_of(output_dir: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": weight
        for file in sorted(output_dir.glob("latest/*/*.safetensors"))
        for name, weight in load_file(file).items()
    }


def assert_same_weights(one: Path, other: Path, atol: float) -> None:
    mine, theirs = weights_of(one), weights_of(other)
    assert mine
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=atol, msg=name)


def as_overrides(values: dict[str, Any]) -> list[str]:
    return [
        f"{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in values.items()
    ]
