"""Qwen2.5: sizes, builders, tokenizer. Its checkpoints are of the Qwen2 family."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.qwen2 import QWEN2, QWEN2_SIZES, qwen2_tokenizer

# arXiv:2412.15115, table 1; vocabularies (padded), ties, positions and norm_eps as in Qwen/Qwen2.5-0.5B to -72B and
# their instruct versions, config.json. Base and instruct differ in positions and, from 14B on, in norm_eps.
_3B = replace(QWEN2_SIZES["1_5b"], num_layers=36, num_heads=16, embed_dim=2048, intermediate_dim=11_008)
_14B = replace(
    QWEN2_SIZES["7b"], num_layers=48, num_heads=40, num_kv_heads=8, embed_dim=5120, intermediate_dim=13_824
)
_32B = replace(_14B, num_layers=64, intermediate_dim=27_648)

qwen2_5_0_5b = ModelBuilder(QWEN2, QWEN2_SIZES["0_5b"])
qwen2_5_1_5b_base = ModelBuilder(QWEN2, replace(QWEN2_SIZES["1_5b"], max_seq_len=131_072))
qwen2_5_1_5b_instruct = ModelBuilder(QWEN2, QWEN2_SIZES["1_5b"])
qwen2_5_3b = ModelBuilder(QWEN2, _3B)
qwen2_5_7b_base = ModelBuilder(QWEN2, replace(QWEN2_SIZES["7b"], max_seq_len=131_072))
qwen2_5_7b_instruct = ModelBuilder(QWEN2, QWEN2_SIZES["7b"])
qwen2_5_14b_base = ModelBuilder(QWEN2, replace(_14B, max_seq_len=131_072, norm_eps=1e-5))
qwen2_5_14b_instruct = ModelBuilder(QWEN2, _14B)
qwen2_5_32b_base = ModelBuilder(QWEN2, replace(_32B, max_seq_len=131_072, norm_eps=1e-5))
qwen2_5_32b_instruct = ModelBuilder(QWEN2, _32B)
qwen2_5_72b_base = ModelBuilder(QWEN2, replace(QWEN2_SIZES["72b"], max_seq_len=131_072, norm_eps=1e-5))
qwen2_5_72b_instruct = ModelBuilder(QWEN2, QWEN2_SIZES["72b"])

# The hub's names without a suffix.
qwen2_5_1_5b = qwen2_5_1_5b_base
qwen2_5_7b = qwen2_5_7b_base
qwen2_5_14b = qwen2_5_14b_base
qwen2_5_32b = qwen2_5_32b_base
qwen2_5_72b = qwen2_5_72b_base

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

lora_qwen2_5_1_5b = lora_qwen2_5_1_5b_base
lora_qwen2_5_7b = lora_qwen2_5_7b_base
lora_qwen2_5_14b = lora_qwen2_5_14b_base
lora_qwen2_5_32b = lora_qwen2_5_32b_base
lora_qwen2_5_72b = lora_qwen2_5_72b_base
qlora_qwen2_5_1_5b = qlora_qwen2_5_1_5b_base
qlora_qwen2_5_7b = qlora_qwen2_5_7b_base
qlora_qwen2_5_14b = qlora_qwen2_5_14b_base
qlora_qwen2_5_32b = qlora_qwen2_5_32b_base
qlora_qwen2_5_72b = qlora_qwen2_5_72b_base

qwen2_5_tokenizer = qwen2_tokenizer
