"""The builders with adapters."""

from __future__ import annotations

from tune.models.gemma2.builders import gemma2_2b, gemma2_9b, gemma2_27b
from tune.models.lora import LoRABuilder

lora_gemma2_2b = LoRABuilder(gemma2_2b)
lora_gemma2_9b = LoRABuilder(gemma2_9b)
lora_gemma2_27b = LoRABuilder(gemma2_27b)

qlora_gemma2_2b = LoRABuilder(gemma2_2b, quantize_base=True)
qlora_gemma2_9b = LoRABuilder(gemma2_9b, quantize_base=True)
qlora_gemma2_27b = LoRABuilder(gemma2_27b, quantize_base=True)
