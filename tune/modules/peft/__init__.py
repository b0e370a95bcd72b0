"""Adapters: few trained parameters beside a frozen model."""

from __future__ import annotations

from tune.modules.peft.apply import (
    adapted_modules,
    adapter_parameters,
    add_token_rows,
    apply_lora,
    cast_adapters,
    chosen_modules,
    drop_adapters,
    freeze,
    has_token_rows,
    is_adapter,
    merge_adapters,
    reset_adapters,
)
from tune.modules.peft.config import AttnModule, LoRAConfig, LoRAModule, choose_lora
from tune.modules.peft.experts import FrozenExperts, LoRAExperts
from tune.modules.peft.frozen import FrozenLinear
from tune.modules.peft.lora import LoRALinear
from tune.modules.peft.nf4 import NF4Weight, nf4_linear, quantize_nf4
from tune.modules.peft.token_rows import TokenRowsEmbedding, TokenRowsLinear
from tune.modules.peft.torchtune_names import GONE, HERE
from tune.utils.torchtune_names import offer_names

__all__ = [
    "AttnModule",
    "FrozenExperts",
    "FrozenLinear",
    "LoRAConfig",
    "LoRAExperts",
    "LoRALinear",
    "LoRAModule",
    "NF4Weight",
    "TokenRowsEmbedding",
    "TokenRowsLinear",
    "adapted_modules",
    "adapter_parameters",
    "add_token_rows",
    "apply_lora",
    "cast_adapters",
    "choose_lora",
    "chosen_modules",
    "drop_adapters",
    "freeze",
    "has_token_rows",
    "is_adapter",
    "merge_adapters",
    "nf4_linear",
    "quantize_nf4",
    "reset_adapters",
]

offer_names(__name__, HERE, GONE)
