"""What the benchmarks share: sizes, a clock that waits for the device, facts of the machine, figures as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "num_layers": 2, "num_heads": 3, "embed_dim": 48, "intermediate_dim": 112},
    "15m": {"vocab_size": 32_000, "num_layers": 6, "num_heads": 6, "embed_dim": 288, "intermediate_dim": 768},
    "110m": {
        "vocab_size": 32_000,
        "num_layers": 12,
        "num_heads": 12,
        "embed_dim": 768,
        "intermediate_dim": 2048,
    },
    "1b": {
        "vocab_size": 32_000,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "embed_dim": 2048,
        "intermediate_dim": 5632,
    },
    "7b": {
        "vocab_size": 32_000,
        "num_layers": 32,
        "num_heads": 32,
        "embed_dim": 4096,
        "intermediate_dim": 11_008,
    },
}


def timed(work: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Return what ``work`` takes; its results are on the host when it returns, so nothing is pending."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    work()
    return clock() - started


def describe_machine(device: str) -> dict[str, Any]:
    """Return the device, threads and versions that figures belong to."""
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_figures(figures: Mapping[str, Any], path: str | None) -> None:
    """Print figures as JSON, and write them to a file where one is named."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
