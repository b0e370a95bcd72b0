"""Phi-3: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.phi3.builders import phi3, phi3_medium, phi3_mini
from tune.models.phi3.lora import lora_phi3_mini, qlora_phi3_mini
from tune.models.phi3.tokenizer import phi3_mini_tokenizer

__all__ = ["lora_phi3_mini", "phi3", "phi3_medium", "phi3_mini", "phi3_mini_tokenizer", "qlora_phi3_mini"]
