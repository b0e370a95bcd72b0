"""Qwen2: sizes, builders."""

from __future__ import annotations

from tune.models.qwen2.builders import qwen2, qwen2_0_5b, qwen2_1_5b, qwen2_7b, qwen2_72b, qwen2_72b_instruct

__all__ = [
    "qwen2",
    "qwen2_0_5b",
    "qwen2_1_5b",
    "qwen2_7b",
    "qwen2_72b",
    "qwen2_72b_instruct",
]
