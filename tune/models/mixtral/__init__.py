"""Mixtral: sizes, builders."""

from __future__ import annotations

from tune.models.mixtral.builders import mixtral_8x7b, mixtral_8x22b

__all__ = ["mixtral_8x7b", "mixtral_8x22b"]
