"""Code Llama by size. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.llama2.builders import LLAMA2_SIZES
from tune.models.llama2.family import LLAMA
from tune.modules import DecoderConfig, TransformerDecoder


def _for_code(sizes: DecoderConfig) -> DecoderConfig:
    # arXiv:2308.12950, 2.4: long texts by a larger base. 16 entries for infilling join the vocabulary.
    return replace(sizes, vocab_size=32_016, max_seq_len=16_384, rope_base=1_000_000.0)


# codellama/CodeLlama-7b-hf, -13b-hf, -34b-hf and -70b-hf, config.json; those for Python have 32000 entries.
_SIZES = {
    **{size: _for_code(sizes) for size, sizes in LLAMA2_SIZES.items()},
    "34b": replace(_for_code(LLAMA2_SIZES["70b"]), vocab_size=32_000, num_layers=48, intermediate_dim=22_016),
}


def code_llama2_7b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Code Llama 7B, randomly initialised: 32 layers, width 4096, 16384 positions."""
    return _build("7b", attn_dropout)


def code_llama2_13b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Code Llama 13B, randomly initialised: 40 layers, width 5120, 16384 positions."""
    return _build("13b", attn_dropout)


def code_llama2_34b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Code Llama 34B, randomly initialised: 48 layers, width 8192, 16384 positions."""
    return _build("34b", attn_dropout)


def code_llama2_70b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Code Llama 70B, randomly initialised: 80 layers, width 8192, 16384 positions."""
    return _build("70b", attn_dropout)


def _build(size: str, attn_dropout: float) -> TransformerDecoder:
    return TransformerDecoder(replace(_SIZES[size], attn_dropout=attn_dropout), LLAMA)
