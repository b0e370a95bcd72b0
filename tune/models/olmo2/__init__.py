"""OLMo 2: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.olmo2.builders import olmo2_1b, olmo2_7b, olmo2_13b, olmo2_32b
from tune.models.olmo2.tokenizer import olmo2_tokenizer

__all__ = ["olmo2_1b", "olmo2_7b", "olmo2_13b", "olmo2_32b", "olmo2_tokenizer"]
