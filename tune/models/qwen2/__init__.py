"""Qwen2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.qwen2.builders import qwen2, qwen2_0_5b, qwen2_1_5b, qwen2_7b, qwen2_72b, qwen2_72b_instruct
from tune.models.qwen2.tokenizer import qwen2_tokenizer

__all__ = [
    "qwen2",
    "qwen2_0_5b",
    "qwen2_1_5b",
    "qwen2_7b",
    "qwen2_72b",
    "qwen2_72b_instruct",
    "qwen2_tokenizer",
]
