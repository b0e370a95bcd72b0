"""SmolLM2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.smollm2.builders import smollm2_1_7b, smollm2_135m, smollm2_360m
from tune.models.smollm2.tokenizer import smollm2_tokenizer

__all__ = [
    "smollm2_1_7b",
    "smollm2_135m",
    "smollm2_360m",
    "smollm2_tokenizer",
]
