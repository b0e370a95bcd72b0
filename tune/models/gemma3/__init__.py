"""Gemma 3: sizes, builders of the text models."""

from __future__ import annotations

from tune.models.gemma3.builders import (
    gemma3,
    gemma3_1b,
    gemma3_4b,
    gemma3_12b,
    gemma3_27b,
    gemma3_270m,
)

__all__ = ["gemma3", "gemma3_1b", "gemma3_4b", "gemma3_12b", "gemma3_27b", "gemma3_270m"]
