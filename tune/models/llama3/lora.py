"""The builders with adapters."""

from __future__ import annotations

from tune.models.llama3.builders import llama3_8b, llama3_70b
from tune.models.lora import LoRABuilder

lora_llama3_8b = LoRABuilder(llama3_8b)
lora_llama3_70b = LoRABuilder(llama3_70b)

qlora_llama3_8b = LoRABuilder(llama3_8b, quantize_base=True)
qlora_llama3_70b = LoRABuilder(llama3_70b, quantize_base=True)
