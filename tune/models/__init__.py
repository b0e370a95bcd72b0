"""Model families, and the model that a checkpoint describes."""

from __future__ import annotations

from tune.models.getters import get_model, get_tokenizer
from tune.models.loading import auto, from_checkpoint

__all__ = ["auto", "from_checkpoint", "get_model", "get_tokenizer"]
