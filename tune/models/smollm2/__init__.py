"""SmolLM2: sizes, builders."""

from __future__ import annotations

from tune.models.smollm2.builders import smollm2_1_7b, smollm2_135m, smollm2_360m

__all__ = [
    "smollm2_1_7b",
    "smollm2_135m",
    "smollm2_360m",
]
