"""The families that checkpoints are recognised as."""

from __future__ import annotations

from tune.models.gemma.family import GEMMA
from tune.models.gemma2.family import GEMMA2
from tune.models.gemma3.family import GEMMA3
from tune.models.granite.family import GRANITE
from tune.models.llama2.family import LLAMA
from tune.models.mistral.family import MISTRAL
from tune.models.mixtral.family import MIXTRAL
from tune.models.olmo2.family import OLMO2
from tune.models.phi3.family import PHI3
from tune.models.qwen2.family import QWEN2
from tune.models.qwen3.family import QWEN3
from tune.models.qwen3_moe.family import QWEN3_MOE
from tune.models.smollm3.family import SMOLLM3
from tune.modules import Family

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    QWEN3_MOE,
    OLMO2,
    MIXTRAL,
    MISTRAL,
    QWEN2,
    QWEN3,
    SMOLLM3,
    GRANITE,
)
