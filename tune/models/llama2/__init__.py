"""Llama 2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.llama2.builders import llama2, llama2_7b, llama2_13b, llama2_70b
from tune.models.llama2.lora import (
    lora_llama2,
    lora_llama2_7b,
    lora_llama2_13b,
    lora_llama2_70b,
    qlora_llama2_7b,
    qlora_llama2_13b,
    qlora_llama2_70b,
)
from tune.models.llama2.tokenizer import llama2_tokenizer

__all__ = [
    "llama2",
    "llama2_7b",
    "llama2_13b",
    "llama2_70b",
    "llama2_tokenizer",
    "lora_llama2",
    "lora_llama2_7b",
    "lora_llama2_13b",
    "lora_llama2_70b",
    "qlora_llama2_7b",
    "qlora_llama2_13b",
    "qlora_llama2_70b",
]
