"""Mistral: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.mistral.builders import (
    mistral,
    mistral_7b,
    mistral_7b_v0_2,
    mistral_7b_v0_3,
    mistral_nemo_12b,
)
from tune.models.mistral.tokenizer import mistral_tokenizer

__all__ = [
    "mistral",
    "mistral_7b",
    "mistral_7b_v0_2",
    "mistral_7b_v0_3",
    "mistral_nemo_12b",
    "mistral_tokenizer",
]
