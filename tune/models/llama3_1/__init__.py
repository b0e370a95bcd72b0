"""Llama 3.1: sizes, builders."""

from __future__ import annotations

from tune.models.llama3_1.builders import llama3_1, llama3_1_8b, llama3_1_70b, llama3_1_405b

__all__ = [
    "llama3_1",
    "llama3_1_8b",
    "llama3_1_70b",
    "llama3_1_405b",
]
