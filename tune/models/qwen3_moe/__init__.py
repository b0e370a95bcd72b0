"""Qwen3 with experts: sizes, builders, tokenizer."""

from __future__ import annotations

from tune.models.qwen3_moe.builders import qwen3_30b_a3b, qwen3_235b_a22b
from tune.models.qwen3_moe.tokenizer import qwen3_moe_tokenizer

__all__ = ["qwen3_30b_a3b", "qwen3_235b_a22b", "qwen3_moe_tokenizer"]
