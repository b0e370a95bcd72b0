"""Granite 3: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.granite.builders import (
    granite_3_0_2b,
    granite_3_0_8b,
    granite_3_1_2b,
    granite_3_1_8b,
    granite_3_2_2b,
    granite_3_2_8b,
    granite_3_3_2b,
    granite_3_3_8b,
)
from tune.models.granite.tokenizer import granite_tokenizer

__all__ = [
    "granite_3_0_2b",
    "granite_3_0_8b",
    "granite_3_1_2b",
    "granite_3_1_8b",
    "granite_3_2_2b",
    "granite_3_2_8b",
    "granite_3_3_2b",
    "granite_3_3_8b",
    "granite_tokenizer",
]
