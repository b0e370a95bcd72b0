"""How much an optimizer keeps for each weight it trains, after its first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch.optim import Optimizer

from tune.config.component import Component
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.optimizers import FUSED_OPTIMIZERS, IMPLEMENTATION_ARGUMENTS

__all__ = ["OptimizerSizes", "optimizer_sizes"]

# Tensors of a weight's size and dtype that each class of torch.optim keeps beside it, as its source has it.
_TENSORS = {
    "Adadelta": 2,
    "Adagrad": 1,
    "Adam": 2,
    "AdamW": 2,
    "Adamax": 2,
    "ASGD": 1,
    "Muon": 1,
    "NAdam": 2,
    "RAdam": 2,
    "RMSprop": 1,
    "Rprop": 2,
    "SGD": 0,
}
# One more each, where an argument of that name is set.
_MORE = {
    "Adam": ("amsgrad",),
    "AdamW": ("amsgrad",),
    "Adadelta": (),
    "RMSprop": ("momentum", "centered"),
    "SGD": ("momentum",),
}
# bitsandbytes: states in 8 bits with a scale in fp32 per 256 numbers; small weights keep theirs in fp32.
_STATES_8BIT = {
    "AdamW8bit": 2,
    "Adam8bit": 2,
    "PagedAdamW8bit": 2,
    "PagedAdam8bit": 2,
    "Lion8bit": 1,
    "SGD8bit": 1,
}
_SMALL_8BIT, _BLOCK_8BIT = 4096, 256
_UNKNOWN = 2


@dataclass(frozen=True)
class OptimizerSizes:
    """What an optimizer keeps.

    Args:
        name: its class.
        settings: arguments that decide how much.
        is_foreach: on a GPU it steps all weights at once, through results as large as they are.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_foreach: bool = False

    @property
    def is_known(self) -> bool:
        """Whether the size is this class's, and not a guess."""
        return self.name in _TENSORS or self.name in _STATES_8BIT or self.name == "Adafactor"

    @property
    def is_8bit(self) -> bool:
        """Whether states are kept in 8 bits."""
        return self.name in _STATES_8BIT

    def bytes_for(self, shape: tuple[int, ...], itemsize: int) -> float:
        """Return the bytes kept for a weight of this shape, of `itemsize` bytes a number."""
        size = prod(shape)
        if self.is_8bit:
            states = _STATES_8BIT[self.name]
            return states * size * (4 if size < _SMALL_8BIT else 1 + 4 / _BLOCK_8BIT)
        if self.name == "Adafactor":
            # Sums over rows and over columns in place of the matrix (arXiv:1804.04235, algorithm 4).
            return itemsize * (size if len(shape) < 2 else size // shape[-1] + size // shape[-2])
        tensors = _TENSORS.get(self.name, _UNKNOWN)
        tensors += sum(bool(self.settings.get(name)) for name in _MORE.get(self.name, ()))
        return tensors * size * itemsize

    def __str__(self) -> str:
        if not self.is_known:
            return f"{self.name}: unknown, taken as {_UNKNOWN} tensors per weight"
        return f"{self.name}, {self.bytes_for((4096, 4096), 2) / 4096**2:.3g} B per bf16 weight"


def optimizer_sizes(optimizer: Optimizer | Component) -> OptimizerSizes:
    """Return what an optimizer, or the component that will build one, keeps."""
    if isinstance(optimizer, Component):
        name, settings = optimizer.path.rpartition(".")[2], dict(optimizer.kwargs)
        # As `build_optimizer` builds it: fused where the config leaves it open.
        if name in FUSED_OPTIMIZERS and not IMPLEMENTATION_ARGUMENTS & settings.keys():
            settings["fused"] = True
    else:
        built = optimizer._optimizers[0] if isinstance(optimizer, OptimizerInBackward) else optimizer
        name, settings = type(built).__name__, dict(built.defaults)
    # torch takes the form that steps all weights at once, on a GPU, unless it is told otherwise.
    is_foreach = not settings.get("fused") and settings.get("foreach") is not False
    return OptimizerSizes(name, settings, is_foreach)
