"""Llama 3: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.llama3.builders import llama3, llama3_8b, llama3_70b
from tune.models.llama3.lora import lora_llama3_8b, lora_llama3_70b, qlora_llama3_8b, qlora_llama3_70b
from tune.models.llama3.tokenizer import llama3_tokenizer

__all__ = [
    "llama3",
    "llama3_8b",
    "llama3_70b",
    "llama3_tokenizer",
    "lora_llama3_8b",
    "lora_llama3_70b",
    "qlora_llama3_8b",
    "qlora_llama3_70b",
]
