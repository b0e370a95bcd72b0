"""Mixtral: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.mixtral.builders import mixtral_8x7b, mixtral_8x22b
from tune.models.mixtral.tokenizer import mixtral_tokenizer

__all__ = ["mixtral_8x7b", "mixtral_8x22b", "mixtral_tokenizer"]
