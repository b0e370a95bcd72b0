"""Llama 3.3: sizes, builders."""

from __future__ import annotations

from tune.models.llama3_3.builders import llama3_3_70b
from tune.models.llama3_3.lora import lora_llama3_3_70b, qlora_llama3_3_70b

__all__ = ["llama3_3_70b", "lora_llama3_3_70b", "qlora_llama3_3_70b"]
