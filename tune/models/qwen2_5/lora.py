"""The builders with adapters."""

from __future__ import annotations

from tune.models.lora import LoRABuilder
from tune.models.qwen2_5.builders import (
    qwen2_5_0_5b,
    qwen2_5_1_5b_base,
    qwen2_5_1_5b_instruct,
    qwen2_5_3b,
    qwen2_5_7b_base,
    qwen2_5_7b_instruct,
    qwen2_5_14b_base,
    qwen2_5_14b_instruct,
    qwen2_5_32b_base,
    qwen2_5_32b_instruct,
    qwen2_5_72b_base,
    qwen2_5_72b_instruct,
)

lora_qwen2_5_0_5b = LoRABuilder(qwen2_5_0_5b)
lora_qwen2_5_1_5b_base = LoRABuilder(qwen2_5_1_5b_base)
lora_qwen2_5_1_5b_instruct = LoRABuilder(qwen2_5_1_5b_instruct)
lora_qwen2_5_3b = LoRABuilder(qwen2_5_3b)
lora_qwen2_5_7b_base = LoRABuilder(qwen2_5_7b_base)
lora_qwen2_5_7b_instruct = LoRABuilder(qwen2_5_7b_instruct)
lora_qwen2_5_14b_base = LoRABuilder(qwen2_5_14b_base)
lora_qwen2_5_14b_instruct = LoRABuilder(qwen2_5_14b_instruct)
lora_qwen2_5_32b_base = LoRABuilder(qwen2_5_32b_base)
lora_qwen2_5_32b_instruct = LoRABuilder(qwen2_5_32b_instruct)
lora_qwen2_5_72b_base = LoRABuilder(qwen2_5_72b_base)
lora_qwen2_5_72b_instruct = LoRABuilder(qwen2_5_72b_instruct)

qlora_qwen2_5_0_5b = LoRABuilder(qwen2_5_0_5b, quantize_base=True)
qlora_qwen2_5_1_5b_base = LoRABuilder(qwen2_5_1_5b_base, quantize_base=True)
qlora_qwen2_5_1_5b_instruct = LoRABuilder(qwen2_5_1_5b_instruct, quantize_base=True)
qlora_qwen2_5_3b = LoRABuilder(qwen2_5_3b, quantize_base=True)
qlora_qwen2_5_7b_base = LoRABuilder(qwen2_5_7b_base, quantize_base=True)
qlora_qwen2_5_7b_instruct = LoRABuilder(qwen2_5_7b_instruct, quantize_base=True)
qlora_qwen2_5_14b_base = LoRABuilder(qwen2_5_14b_base, quantize_base=True)
qlora_qwen2_5_14b_instruct = LoRABuilder(qwen2_5_14b_instruct, quantize_base=True)
qlora_qwen2_5_32b_base = LoRABuilder(qwen2_5_32b_base, quantize_base=True)
qlora_qwen2_5_32b_instruct = LoRABuilder(qwen2_5_32b_instruct, quantize_base=True)
qlora_qwen2_5_72b_base = LoRABuilder(qwen2_5_72b_base, quantize_base=True)
qlora_qwen2_5_72b_instruct = LoRABuilder(qwen2_5_72b_instruct, quantize_base=True)
