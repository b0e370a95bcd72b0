"""Phi-4: sizes, builders. Its checkpoints are of the Phi-3 family."""

from __future__ import annotations

from tune.models.phi4.builders import phi4_14b, phi4_mini

__all__ = ["phi4_14b", "phi4_mini"]
