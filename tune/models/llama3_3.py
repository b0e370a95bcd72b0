"""Llama 3.3, in the one size of Llama 3.1 70B: builders."""

from __future__ import annotations

from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.llama2 import LLAMA
from tune.models.llama3_1 import LLAMA3_1_70B

llama3_3_70b = ModelBuilder(LLAMA, LLAMA3_1_70B)

lora_llama3_3_70b = LoRABuilder(llama3_3_70b)
qlora_llama3_3_70b = LoRABuilder(llama3_3_70b, quantize_base=True)
