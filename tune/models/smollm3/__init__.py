"""SmolLM3: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.smollm3.builders import smollm3_3b
from tune.models.smollm3.tokenizer import smollm3_tokenizer

__all__ = [
    "smollm3_3b",
    "smollm3_tokenizer",
]
