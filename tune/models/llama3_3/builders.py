"""Llama 3.3. Builders use torch's current default device and dtype."""

from __future__ import annotations

from dataclasses import replace

from tune.models.llama2.family import LLAMA
from tune.models.llama3_1.builders import LLAMA3_1_70B
from tune.modules import TransformerDecoder


def llama3_3_70b(attn_dropout: float = 0.0) -> TransformerDecoder:
    """Return Llama 3.3 70B, randomly initialised: the sizes of Llama 3.1 70B."""
    return TransformerDecoder(replace(LLAMA3_1_70B, attn_dropout=attn_dropout), LLAMA)
