"""SmolLM3: sizes, builders."""

from __future__ import annotations

from tune.models.smollm3.builders import smollm3_3b

__all__ = [
    "smollm3_3b",
]
