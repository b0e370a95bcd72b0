"""Llama 3: sizes, builders."""

from __future__ import annotations

from tune.models.llama3.builders import llama3, llama3_8b, llama3_70b

__all__ = [
    "llama3",
    "llama3_8b",
    "llama3_70b",
]
