"""The builders with adapters."""

from __future__ import annotations

from tune.models.llama3_1.builders import llama3_1_8b, llama3_1_70b, llama3_1_405b
from tune.models.lora import LoRABuilder

lora_llama3_1_8b = LoRABuilder(llama3_1_8b)
lora_llama3_1_70b = LoRABuilder(llama3_1_70b)
lora_llama3_1_405b = LoRABuilder(llama3_1_405b)

qlora_llama3_1_8b = LoRABuilder(llama3_1_8b, quantize_base=True)
qlora_llama3_1_70b = LoRABuilder(llama3_1_70b, quantize_base=True)
qlora_llama3_1_405b = LoRABuilder(llama3_1_405b, quantize_base=True)
