"""Gemma 2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.gemma2.builders import gemma2, gemma2_2b, gemma2_9b, gemma2_27b
from tune.models.gemma2.lora import (
    lora_gemma2_2b,
    lora_gemma2_9b,
    lora_gemma2_27b,
    qlora_gemma2_2b,
    qlora_gemma2_9b,
    qlora_gemma2_27b,
)
from tune.models.gemma2.tokenizer import gemma2_tokenizer

__all__ = [
    "gemma2",
    "gemma2_2b",
    "gemma2_9b",
    "gemma2_27b",
    "gemma2_tokenizer",
    "lora_gemma2_2b",
    "lora_gemma2_9b",
    "lora_gemma2_27b",
    "qlora_gemma2_2b",
    "qlora_gemma2_9b",
    "qlora_gemma2_27b",
]
