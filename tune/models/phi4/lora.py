"""The builders with adapters."""

from __future__ import annotations

from tune.models.lora import LoRABuilder
from tune.models.phi4.builders import phi4_14b

lora_phi4_14b = LoRABuilder(phi4_14b)

qlora_phi4_14b = LoRABuilder(phi4_14b, quantize_base=True)
