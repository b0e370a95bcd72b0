"""Llama 3.1: sizes, builders."""

from __future__ import annotations

from tune.models.llama3_1.builders import llama3_1, llama3_1_8b, llama3_1_70b, llama3_1_405b
from tune.models.llama3_1.lora import (
    lora_llama3_1_8b,
    lora_llama3_1_70b,
    lora_llama3_1_405b,
    qlora_llama3_1_8b,
    qlora_llama3_1_70b,
    qlora_llama3_1_405b,
)

__all__ = [
    "llama3_1",
    "llama3_1_8b",
    "llama3_1_70b",
    "llama3_1_405b",
    "lora_llama3_1_8b",
    "lora_llama3_1_70b",
    "lora_llama3_1_405b",
    "qlora_llama3_1_8b",
    "qlora_llama3_1_70b",
    "qlora_llama3_1_405b",
]
