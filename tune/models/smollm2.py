"""SmolLM2: sizes, builders, tokenizer. Its checkpoints are of the Llama family."""

from __future__ import annotations

from dataclasses import replace

from tune.models.builders import ModelBuilder, tokenizer_at
from tune.models.llama2 import LLAMA
from tune.modules import DecoderConfig

# HuggingFaceTB/SmolLM2-135M, -360M and -1.7B, config.json
_135M = DecoderConfig(
    vocab_size=49_152,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    embed_dim=576,
    head_dim=64,
    intermediate_dim=1536,
    max_seq_len=8192,
    rope_base=100_000.0,
    tie_word_embeddings=True,
)
_360M = replace(_135M, num_layers=32, num_heads=15, num_kv_heads=5, embed_dim=960, intermediate_dim=2560)
_1_7B = replace(
    _135M,
    num_layers=24,
    num_heads=32,
    num_kv_heads=32,
    embed_dim=2048,
    intermediate_dim=8192,
    rope_base=130_000.0,
)

smollm2_135m = ModelBuilder(LLAMA, _135M)
smollm2_360m = ModelBuilder(LLAMA, _360M)
smollm2_1_7b = ModelBuilder(LLAMA, _1_7B)

smollm2_tokenizer = tokenizer_at
