"""Llama 3.2: sizes, builders."""

from __future__ import annotations

from tune.models.llama3_2.builders import llama3_2, llama3_2_1b, llama3_2_3b
from tune.models.llama3_2.lora import lora_llama3_2_1b, lora_llama3_2_3b, qlora_llama3_2_1b, qlora_llama3_2_3b

__all__ = [
    "llama3_2",
    "llama3_2_1b",
    "llama3_2_3b",
    "lora_llama3_2_1b",
    "lora_llama3_2_3b",
    "qlora_llama3_2_1b",
    "qlora_llama3_2_3b",
]
