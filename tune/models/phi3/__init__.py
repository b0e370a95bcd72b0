"""Phi-3: sizes, builders."""

from __future__ import annotations

from tune.models.phi3.builders import phi3, phi3_medium, phi3_mini

__all__ = ["phi3", "phi3_medium", "phi3_mini"]
