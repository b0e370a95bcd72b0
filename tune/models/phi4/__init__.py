"""Phi-4: sizes, builders, tokenizer. Its checkpoints are of the Phi-3 family."""

from __future__ import annotations

from tune.models.phi4.builders import phi4_14b, phi4_mini
from tune.models.phi4.lora import lora_phi4_14b, qlora_phi4_14b
from tune.models.phi4.tokenizer import phi4_mini_tokenizer, phi4_tokenizer

__all__ = [
    "lora_phi4_14b",
    "phi4_14b",
    "phi4_mini",
    "phi4_mini_tokenizer",
    "phi4_tokenizer",
    "qlora_phi4_14b",
]
