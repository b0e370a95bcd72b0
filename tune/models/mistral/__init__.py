"""Mistral: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.mistral.builders import (
    mistral,
    mistral_7b,
    mistral_7b_v0_2,
    mistral_7b_v0_3,
    mistral_nemo_12b,
)
from tune.models.mistral.lora import lora_mistral_7b, qlora_mistral_7b
from tune.models.mistral.tokenizer import mistral_tokenizer

__all__ = [
    "lora_mistral_7b",
    "mistral",
    "mistral_7b",
    "mistral_7b_v0_2",
    "mistral_7b_v0_3",
    "mistral_nemo_12b",
    "mistral_tokenizer",
    "qlora_mistral_7b",
]
