"""Optimizers of tune's own, where torch's lose what was learnt."""

from __future__ import annotations

from tune.modules.optim.adamw import AdamW

__all__ = ["AdamW"]
