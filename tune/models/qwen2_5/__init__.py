"""Qwen2.5: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.qwen2_5.builders import (
    qwen2_5_0_5b,
    qwen2_5_1_5b,
    qwen2_5_1_5b_base,
    qwen2_5_1_5b_instruct,
    qwen2_5_3b,
    qwen2_5_7b,
    qwen2_5_7b_base,
    qwen2_5_7b_instruct,
    qwen2_5_14b,
    qwen2_5_14b_base,
    qwen2_5_14b_instruct,
    qwen2_5_32b,
    qwen2_5_32b_base,
    qwen2_5_32b_instruct,
    qwen2_5_72b,
    qwen2_5_72b_base,
    qwen2_5_72b_instruct,
)
from tune.models.qwen2_5.tokenizer import qwen2_5_tokenizer

__all__ = [
    "qwen2_5_0_5b",
    "qwen2_5_1_5b",
    "qwen2_5_1_5b_base",
    "qwen2_5_1_5b_instruct",
    "qwen2_5_3b",
    "qwen2_5_7b",
    "qwen2_5_7b_base",
    "qwen2_5_7b_instruct",
    "qwen2_5_14b",
    "qwen2_5_14b_base",
    "qwen2_5_14b_instruct",
    "qwen2_5_32b",
    "qwen2_5_32b_base",
    "qwen2_5_32b_instruct",
    "qwen2_5_72b",
    "qwen2_5_72b_base",
    "qwen2_5_72b_instruct",
    "qwen2_5_tokenizer",
]
