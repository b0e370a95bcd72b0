"""Gemma: sizes, builders."""

from __future__ import annotations

from tune.models.gemma.builders import gemma, gemma_2b, gemma_7b

__all__ = ["gemma", "gemma_2b", "gemma_7b"]
