"""The builders with adapters."""

from __future__ import annotations

from tune.models.lora import LoRABuilder
from tune.models.phi3.builders import phi3_mini

lora_phi3_mini = LoRABuilder(phi3_mini)

qlora_phi3_mini = LoRABuilder(phi3_mini, quantize_base=True)
