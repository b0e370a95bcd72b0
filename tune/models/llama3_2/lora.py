"""The builders with adapters."""

from __future__ import annotations

from tune.models.llama3_2.builders import llama3_2_1b, llama3_2_3b
from tune.models.lora import LoRABuilder

lora_llama3_2_1b = LoRABuilder(llama3_2_1b)
lora_llama3_2_3b = LoRABuilder(llama3_2_3b)

qlora_llama3_2_1b = LoRABuilder(llama3_2_1b, quantize_base=True)
qlora_llama3_2_3b = LoRABuilder(llama3_2_3b, quantize_base=True)
