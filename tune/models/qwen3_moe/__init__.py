"""Qwen3 with experts: sizes, builders."""

from __future__ import annotations

from tune.models.qwen3_moe.builders import qwen3_30b_a3b, qwen3_235b_a22b

__all__ = ["qwen3_30b_a3b", "qwen3_235b_a22b"]
