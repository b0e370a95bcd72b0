"""Gemma: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.gemma.builders import gemma, gemma_2b, gemma_7b
from tune.models.gemma.lora import lora_gemma_2b, lora_gemma_7b, qlora_gemma_2b, qlora_gemma_7b
from tune.models.gemma.tokenizer import gemma_tokenizer

__all__ = [
    "gemma",
    "gemma_2b",
    "gemma_7b",
    "gemma_tokenizer",
    "lora_gemma_2b",
    "lora_gemma_7b",
    "qlora_gemma_2b",
    "qlora_gemma_7b",
]
