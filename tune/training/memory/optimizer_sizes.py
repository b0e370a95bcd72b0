"""How much an optimizer keeps for each weight it trains: measured in steps on a weight without memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tune.config.component import Component
from tune.training.memory.live_bytes import LiveBytes
from tune.training.memory.measure import CANNOT_RUN, measured_device
from tune.training.optimizers import build_optimizer

__all__ = ["OptimizerSizes"]

# bitsandbytes steps in kernels of its own, which need memory: states in 8 bits with a scale in fp32 per 256 numbers;
# small weights keep theirs in fp32.
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


class StateBytes(NamedTuple):
    """Bytes kept for a weight, and those that come and go in its step, with those of all weights at once or not."""

    kept: float
    working: float = 0.0
    is_foreach: bool = False


_Known = dict[tuple[tuple[int, ...], torch.dtype], StateBytes | None]


class OptimizerSizes:
    """What an optimizer keeps.

    Args:
        optimizer: its class and arguments.
        device_type: where it steps.
    """

    def __init__(self, optimizer: Component, device_type: str) -> None:
        self._optimizer = optimizer
        self._device = measured_device(device_type)
        self._known = _known_of(repr(optimizer), self._device)

    @property
    def name(self) -> str:
        """What its class is called."""
        return self._optimizer.path.rpartition(".")[2]

    def step_of(self, trained: Iterable[Tensor]) -> tuple[float, float]:
        """Return the bytes that are kept for all weights, and those that come and go in their step."""
        states = [self.state_of(tuple(weight.shape), weight.dtype) for weight in trained]
        at_once = sum(state.working for state in states if state.is_foreach)
        return sum(state.kept for state in states), max([at_once, *(state.working for state in states)])

    def state_of(self, shape: tuple[int, ...], dtype: torch.dtype) -> StateBytes:
        """Return what is kept for a weight."""
        size = prod(shape)
        if self.name in _STATES_8BIT:
            states = _STATES_8BIT[self.name] * size
            return StateBytes(states * (4 if size < _SMALL_8BIT else 1 + 4 / _BLOCK_8BIT))
        if (shape, dtype) not in self._known:
            self._known[shape, dtype] = self._measure(shape, dtype)
        return self._known[shape, dtype] or StateBytes(_UNKNOWN * size * dtype.itemsize)

    def _measure(self, shape: tuple[int, ...], dtype: torch.dtype) -> StateBytes | None:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=self._device))
                weight.grad = torch.empty_like(weight)
                optimizer = build_optimizer(self._optimizer, [weight])
                group = optimizer.param_groups[0]
                if self._device == "cuda" and not group.get("fused") and group.get("foreach", False) is None:
                    group["foreach"] = True  # as torch chooses there, for tensors that have memory
                with LiveBytes([weight, weight.grad]) as live:
                    optimizer.step()
                    live.restart()
                    optimizer.step()
        except CANNOT_RUN:
            return None
        tensors = (value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
        kept = sum(tensor.nbytes for tensor in tensors if tensor.dim())  # counts of steps are scalars
        return StateBytes(kept, live.peak - live.now, bool(group.get("foreach")))

    def __str__(self) -> str:
        shape = (4096, 4096)
        kept = self.state_of(shape, torch.bfloat16).kept
        if self._known.get((shape, torch.bfloat16), kept) is None:
            return f"{self.name}: unknown, taken as {_UNKNOWN} tensors per weight"
        return f"{self.name}, {kept / prod(shape):.3g} B per bf16 weight"


@lru_cache(maxsize=16)
def _known_of(optimizer: str, device: str) -> _Known:
    """Return what has been measured so far of an optimizer with these arguments."""
    return {}
