"""The builders with adapters."""

from __future__ import annotations

from tune.models.lora import LoRABuilder
from tune.models.qwen2.builders import qwen2_0_5b, qwen2_1_5b, qwen2_7b

lora_qwen2_0_5b = LoRABuilder(qwen2_0_5b)
lora_qwen2_1_5b = LoRABuilder(qwen2_1_5b)
lora_qwen2_7b = LoRABuilder(qwen2_7b)

qlora_qwen2_0_5b = LoRABuilder(qwen2_0_5b, quantize_base=True)
qlora_qwen2_1_5b = LoRABuilder(qwen2_1_5b, quantize_base=True)
qlora_qwen2_7b = LoRABuilder(qwen2_7b, quantize_base=True)
