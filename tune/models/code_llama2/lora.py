"""The builders with adapters."""

from __future__ import annotations

from tune.models.code_llama2.builders import code_llama2_7b, code_llama2_13b, code_llama2_70b
from tune.models.lora import LoRABuilder

lora_code_llama2_7b = LoRABuilder(code_llama2_7b)
lora_code_llama2_13b = LoRABuilder(code_llama2_13b)
lora_code_llama2_70b = LoRABuilder(code_llama2_70b)

qlora_code_llama2_7b = LoRABuilder(code_llama2_7b, quantize_base=True)
qlora_code_llama2_13b = LoRABuilder(code_llama2_13b, quantize_base=True)
qlora_code_llama2_70b = LoRABuilder(code_llama2_70b, quantize_base=True)
