"""The builders with adapters."""

from __future__ import annotations

from tune.models.gemma.builders import gemma_2b, gemma_7b
from tune.models.lora import LoRABuilder

lora_gemma_2b = LoRABuilder(gemma_2b)
lora_gemma_7b = LoRABuilder(gemma_7b)

qlora_gemma_2b = LoRABuilder(gemma_2b, quantize_base=True)
qlora_gemma_7b = LoRABuilder(gemma_7b, quantize_base=True)
