"""Gemma 3: sizes, builders of the text models, tokenizer."""

from __future__ import annotations

from tune.models.gemma3.builders import (
    gemma3,
    gemma3_1b,
    gemma3_4b,
    gemma3_12b,
    gemma3_27b,
    gemma3_270m,
)
from tune.models.gemma3.tokenizer import gemma3_tokenizer

__all__ = ["gemma3", "gemma3_1b", "gemma3_4b", "gemma3_12b", "gemma3_27b", "gemma3_270m", "gemma3_tokenizer"]
