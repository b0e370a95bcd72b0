"""Gemma 2: sizes, builders."""

from __future__ import annotations

from tune.models.gemma2.builders import gemma2, gemma2_2b, gemma2_9b, gemma2_27b

__all__ = ["gemma2", "gemma2_2b", "gemma2_9b", "gemma2_27b"]
