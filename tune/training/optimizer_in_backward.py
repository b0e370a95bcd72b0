"""Optimizer steps inside the backward pass, so that gradients never exist all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tune.modules.optim import AdamW

__all__ = ["OptimizerInBackward"]


class OptimizerInBackward(Optimizer):
    """One optimizer per weight, each stepping as soon as its weight's gradient is complete.

    It looks like a single optimizer: schedules set its groups' rates, its state dict has the usual form, and
    `step` and `zero_grad` have nothing left to do. The peak saved is the size of all gradients but the largest.

    Args:
        params: the weights to train.
        factory: makes the optimizer of one weight from a list that holds just that weight.
    """

    def __init__(self, params: Iterable[Tensor], factory: Callable[[list[Tensor]], Optimizer]) -> None:
        weights = list(params)
        self._optimizers = [factory([weight]) for weight in weights]
        for number, optimizer in enumerate(self._optimizers):
            if isinstance(optimizer, AdamW):
                optimizer.first_weight = number
        # The base class wants groups; the real ones, with every setting, are the inner optimizers'.
        super().__init__(weights, dict(self._optimizers[0].defaults))
        self._share_groups_and_state([optimizer.param_groups[0] for optimizer in self._optimizers])
        for weight, optimizer in zip(weights, self._optimizers, strict=True):
            weight.register_post_accumulate_grad_hook(self._make_hook(optimizer))  # type: ignore[no-untyped-call]

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        """The optimizers, one per weight."""
        return tuple(self._optimizers)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, no loss
        """Do nothing: the backward pass has stepped."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: each gradient was freed by its step."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict made by this class, and keep the inner optimizers on it."""
        super().load_state_dict(state_dict)
        # The base class has replaced both containers, which the inner optimizers must go on sharing.
        self._share_groups_and_state(list(self.param_groups))

    def _share_groups_and_state(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        for optimizer, group in zip(self._optimizers, groups, strict=True):
            optimizer.param_groups = [group]
            optimizer.state = self.state

    def _make_hook(self, optimizer: Optimizer) -> Callable[[Tensor], None]:
        def step_and_free(weight: Tensor) -> None:
            with torch.no_grad():
                optimizer.step()
            self.step()  # moves nothing; schedules watch for the call and warn when they miss it
            weight.grad = None

        return step_and_free
