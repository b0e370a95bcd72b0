"""Code Llama: sizes, builders."""

from __future__ import annotations

from tune.models.code_llama2.builders import code_llama2_7b, code_llama2_13b, code_llama2_34b, code_llama2_70b
from tune.models.code_llama2.lora import (
    lora_code_llama2_7b,
    lora_code_llama2_13b,
    lora_code_llama2_70b,
    qlora_code_llama2_7b,
    qlora_code_llama2_13b,
    qlora_code_llama2_70b,
)

__all__ = [
    "code_llama2_7b",
    "code_llama2_13b",
    "code_llama2_34b",
    "code_llama2_70b",
    "lora_code_llama2_7b",
    "lora_code_llama2_13b",
    "lora_code_llama2_70b",
    "qlora_code_llama2_7b",
    "qlora_code_llama2_13b",
    "qlora_code_llama2_70b",
]
