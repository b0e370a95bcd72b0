"""The builders with adapters."""

from __future__ import annotations

from tune.models.llama2.builders import llama2_7b, llama2_13b, llama2_70b
from tune.models.lora import LoRABuilder

lora_llama2_7b = LoRABuilder(llama2_7b)
lora_llama2_13b = LoRABuilder(llama2_13b)
lora_llama2_70b = LoRABuilder(llama2_70b)

qlora_llama2_7b = LoRABuilder(llama2_7b, quantize_base=True)
qlora_llama2_13b = LoRABuilder(llama2_13b, quantize_base=True)
qlora_llama2_70b = LoRABuilder(llama2_70b, quantize_base=True)
