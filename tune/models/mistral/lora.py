"""The builders with adapters."""

from __future__ import annotations

from tune.models.lora import LoRABuilder
from tune.models.mistral.builders import mistral_7b

lora_mistral_7b = LoRABuilder(mistral_7b)

qlora_mistral_7b = LoRABuilder(mistral_7b, quantize_base=True)
