"""The families that checkpoints are recognised as."""

from __future__ import annotations

from tune.models.gemma.family import GEMMA
from tune.models.gemma2.family import GEMMA2
from tune.models.gemma3.family import GEMMA3
from tune.models.llama2.family import LLAMA
from tune.models.phi3.family import PHI3
from tune.modules import Family

FAMILIES: tuple[Family, ...] = (LLAMA, GEMMA, GEMMA2, GEMMA3, PHI3)
