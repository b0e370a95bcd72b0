"""Qwen3: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.qwen3.builders import (
    qwen3,
    qwen3_0_6b,
    qwen3_0_6b_base,
    qwen3_0_6b_instruct,
    qwen3_1_7b,
    qwen3_1_7b_base,
    qwen3_1_7b_instruct,
    qwen3_4b,
    qwen3_4b_base,
    qwen3_4b_instruct,
    qwen3_8b,
    qwen3_8b_base,
    qwen3_8b_instruct,
    qwen3_14b,
    qwen3_14b_base,
    qwen3_14b_instruct,
    qwen3_32b,
)
from tune.models.qwen3.tokenizer import qwen3_tokenizer

__all__ = [
    "qwen3",
    "qwen3_0_6b",
    "qwen3_0_6b_base",
    "qwen3_0_6b_instruct",
    "qwen3_1_7b",
    "qwen3_1_7b_base",
    "qwen3_1_7b_instruct",
    "qwen3_4b",
    "qwen3_4b_base",
    "qwen3_4b_instruct",
    "qwen3_8b",
    "qwen3_8b_base",
    "qwen3_8b_instruct",
    "qwen3_14b",
    "qwen3_14b_base",
    "qwen3_14b_instruct",
    "qwen3_32b",
    "qwen3_tokenizer",
]
