"""Qwen2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.qwen2.builders import qwen2, qwen2_0_5b, qwen2_1_5b, qwen2_7b, qwen2_72b, qwen2_72b_instruct
from tune.models.qwen2.lora import (
    lora_qwen2_0_5b,
    lora_qwen2_1_5b,
    lora_qwen2_7b,
    qlora_qwen2_0_5b,
    qlora_qwen2_1_5b,
    qlora_qwen2_7b,
)
from tune.models.qwen2.tokenizer import qwen2_tokenizer

__all__ = [
    "lora_qwen2_0_5b",
    "lora_qwen2_1_5b",
    "lora_qwen2_7b",
    "qlora_qwen2_0_5b",
    "qlora_qwen2_1_5b",
    "qlora_qwen2_7b",
    "qwen2",
    "qwen2_0_5b",
    "qwen2_1_5b",
    "qwen2_7b",
    "qwen2_72b",
    "qwen2_72b_instruct",
    "qwen2_tokenizer",
]
