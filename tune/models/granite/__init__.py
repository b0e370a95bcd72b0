"""Granite 3: sizes, builders."""

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

__all__ = [
    "granite_3_0_2b",
    "granite_3_0_8b",
    "granite_3_1_2b",
    "granite_3_1_8b",
    "granite_3_2_2b",
    "granite_3_2_8b",
    "granite_3_3_2b",
    "granite_3_3_8b",
]
