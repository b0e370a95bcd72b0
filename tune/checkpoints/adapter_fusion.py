"""Our adapters of matrices that other tools keep in one, as one adapter: A's in a stack, B's in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tune.checkpoints.adapter_layout import PREFIX, TheirModule, alpha_for
from tune.checkpoints.mapping import Lending, Place
from tune.errors import CheckpointError
from tune.modules.peft import LoRALinear


class Sized(Protocol):
    """What has an adapter of some size."""

    rank: int
    alpha: float
    scaling: float
    use_rslora: bool


def fused_size(name: str, own: Mapping[str, Sized]) -> tuple[int, float]:
    """Return the rank and alpha of the adapter that stands for ours.

    Raises:
        CheckpointError: ours are scaled differently, and no one adapter does what they do.
    """
    rank = sum(module.rank for module in own.values())
    scalings = [module.scaling for module in own.values()]
    if not all(math.isclose(scaling, scalings[0], rel_tol=1e-9) for scaling in scalings):
        raise CheckpointError(
            f"{name} holds {' and '.join(own)}, whose adapters are scaled by {' and '.join(map(str, scalings))}; one "
            "adapter for all has one scaling: give them equal alpha and rank"
        )
    first = next(iter(own.values()))
    return rank, first.alpha if len(own) == 1 else alpha_for(scalings[0], rank, first.use_rslora)


def fused_tensors(
    module: TheirModule, own: Mapping[str, LoRALinear], places: Mapping[str, Place], lending: Lending
) -> dict[str, Tensor]:
    """Return the tensors of the adapter that stands for ours, on the CPU.

    Args:
        module: theirs.
        own: those of our modules inside it that have adapters, by path.
        places: of the model's weights.
        lending: as in `ModelWeights`.
    """
    name = f"{PREFIX}{module.name}"
    stacked = torch.cat([adapter.lora_a.weight.detach().cpu() for adapter in own.values()])  # [sum of r, i]
    first = next(iter(own.values()))
    spread = torch.zeros(
        module.height, stacked.shape[0], dtype=first.lora_b.weight.dtype
    )  # [sum of o, sum of r]
    start = 0
    for path, adapter in own.items():
        spread[module.rows_of(path), start : start + adapter.rank] = adapter.lora_b.weight.detach().cpu()
        start += adapter.rank
    tensors = {f"{name}.lora_A.weight": stacked, f"{name}.lora_B.weight": spread}
    if first.magnitude is not None:
        lengths = torch.empty(module.height, dtype=first.magnitude.dtype)
        for path in module.paths:
            lengths[module.rows_of(path)] = _magnitude(places[f"{path}.weight"], lengths.dtype, lending)
        tensors[f"{name}.lora_magnitude_vector"] = lengths
    return tensors


def _magnitude(place: Place, dtype: torch.dtype, lending: Lending) -> Tensor:
    """Return the magnitudes of a matrix; of one without an adapter, the lengths of its rows, which change nothing."""
    if isinstance(place.owner, LoRALinear) and place.owner.magnitude is not None:
        return place.owner.magnitude.detach().cpu()
    with lending(place.owner):
        weight: Tensor = (
            getattr(place.owner, place.leaf) if place.frozen is None else place.frozen.merged_weight()
        )
        lengths: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)
    return lengths.to("cpu", dtype)
