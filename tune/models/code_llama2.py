"""Code Llama: sizes, builders. Its checkpoints are of the Llama family, its tokenizer is Llama 2's."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.llama2 import LLAMA, LLAMA2_SIZES
from tune.modules import DecoderConfig


def _for_code(sizes: DecoderConfig) -> DecoderConfig:
    # arXiv:2308.12950, 2.4: long texts by a larger base. 16 entries for infilling join the vocabulary.
    return replace(sizes, vocab_size=32_016, max_seq_len=16_384, rope_base=1_000_000.0)


# codellama/CodeLlama-7b-hf, -13b-hf, -34b-hf and -70b-hf, config.json; those for Python have 32000 entries.
_70B = _for_code(LLAMA2_SIZES["70b"])
_34B = replace(_70B, vocab_size=32_000, num_layers=48, intermediate_dim=22_016)

code_llama2_7b = ModelBuilder(LLAMA, _for_code(LLAMA2_SIZES["7b"]))
code_llama2_13b = ModelBuilder(LLAMA, _for_code(LLAMA2_SIZES["13b"]))
code_llama2_34b = ModelBuilder(LLAMA, _34B)
code_llama2_70b = ModelBuilder(LLAMA, _70B)

lora_code_llama2_7b = LoRABuilder(code_llama2_7b)
lora_code_llama2_13b = LoRABuilder(code_llama2_13b)
lora_code_llama2_34b = LoRABuilder(code_llama2_34b)
lora_code_llama2_70b = LoRABuilder(code_llama2_70b)
qlora_code_llama2_7b = LoRABuilder(code_llama2_7b, quantize_base=True)
qlora_code_llama2_13b = LoRABuilder(code_llama2_13b, quantize_base=True)
qlora_code_llama2_34b = LoRABuilder(code_llama2_34b, quantize_base=True)
qlora_code_llama2_70b = LoRABuilder(code_llama2_70b, quantize_base=True)
