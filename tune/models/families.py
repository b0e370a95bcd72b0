"""The families that checkpoints are recognised as."""

from __future__ import annotations

from tune.models.llama2.family import LLAMA
from tune.modules import Family

FAMILIES: tuple[Family, ...] = (LLAMA,)
