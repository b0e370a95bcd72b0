"""Llama 2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.llama2.builders import llama2, llama2_7b, llama2_13b, llama2_70b
from tune.models.llama2.tokenizer import llama2_tokenizer

__all__ = ["llama2", "llama2_7b", "llama2_13b", "llama2_70b", "llama2_tokenizer"]
