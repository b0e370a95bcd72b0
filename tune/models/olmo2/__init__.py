"""OLMo 2: sizes, builders."""

from __future__ import annotations

from tune.models.olmo2.builders import olmo2_1b, olmo2_7b, olmo2_13b, olmo2_32b

__all__ = ["olmo2_1b", "olmo2_7b", "olmo2_13b", "olmo2_32b"]
