"""The builders with adapters."""

from __future__ import annotations

from tune.models.llama3_3.builders import llama3_3_70b
from tune.models.lora import LoRABuilder

lora_llama3_3_70b = LoRABuilder(llama3_3_70b)

qlora_llama3_3_70b = LoRABuilder(llama3_3_70b, quantize_base=True)
