"""AdamW that learns in bf16: weights and moments are rounded stochastically, in the memory of bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tune.modules.optim.stochastic_rounding import NUM_DRAWN, bits_at, cut_off_, draw_bits, mix
from tune.utils.sharding import first_element, local_part

__all__ = ["AdamW"]

# Elements whose fp32 copies (weight, two moments, gradient) stay in a processor's cache, for each of its threads.
_AT_ONCE_PER_THREAD = 1 << 16


class _Settings(NamedTuple):
    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    eps: float


class AdamW(torch.optim.AdamW):
    """AdamW as torch has it (arXiv:1711.05101); for weights in bf16 it is computed in fp32 and rounded stochastically.

    Weights, both moments and their gradients keep the bytes of bf16, and follow the course they have in fp32. Weights
    of another type are stepped by torch. What it keeps has torch's names, so that a step saved with `torch.optim.AdamW`
    goes on here.

    Args:
        params: weights or groups of them; sharded ones too.
        lr: learning rate.
        betas: decay of the mean of gradients, and of their squares.
        eps: added to the root of the mean of squares.
        weight_decay: share of a weight that is taken off in a step with a learning rate of 1.
        amsgrad, maximize, foreach, capturable, differentiable, fused: as torch's, for weights that are not in bf16;
            those in bf16 know neither amsgrad nor maximize.
        seed: of the rounding. The numbers follow from it, the step, the weight's position among `params` and the
            element's in the weight.

    Raises:
        ValueError: an argument is out of range, or not for these weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.seed = seed
        # Of the first of its weights among all of a model, where each has an optimizer of its own.
        self.first_weight = 0
        self._num_steps: dict[Tensor, int] = {}
        for group in self.param_groups:
            other = next((name for name in ("amsgrad", "maximize") if group[name]), "")
            if other and any(weight.dtype == torch.bfloat16 for weight in group["params"]):
                raise ValueError(
                    f"{other} is not for weights in bf16; torch.optim.AdamW has it, rounding to the nearest"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an AdamW, this one or torch's."""
        super().load_state_dict(state_dict)
        self._num_steps.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step for every weight that has a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = self.first_weight
        stepped: list[tuple[Tensor, Tensor]] = []
        is_left = False
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            settings = _Settings(float(group["lr"]), beta1, beta2, group["weight_decay"], group["eps"])
            for weight in group["params"]:
                if weight.grad is not None and weight.dtype == torch.bfloat16:
                    self._step(weight, number, settings)
                    stepped.append((weight, weight.grad))
                else:
                    is_left = is_left or weight.grad is not None
                number += 1
        if is_left:
            # Torch steps what has a gradient.
            for weight, _ in stepped:
                weight.grad = None
            super().step()
            for weight, grad in stepped:
                weight.grad = grad
        return loss

    def _step(self, weight: Tensor, number: int, settings: _Settings) -> None:
        if weight.grad is None or weight.grad.is_sparse:
            raise RuntimeError("AdamW takes no sparse gradients")
        state = self.state[weight]
        if not state:
            self._num_steps[weight] = 0
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        # Counted beside the tensor, which is what is saved: reading that would wait for a device that holds it.
        step = self._num_steps[weight] = self._num_steps.get(weight, int(state["step"]) - 1) + 1
        parts = [
            local_part(tensor) for tensor in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
        ]
        if parts[0].numel():
            self._step_rounded(parts, weight, step, number, settings)

    def _step_rounded(
        self, parts: list[Tensor], weight: Tensor, step: int, number: int, settings: _Settings
    ) -> None:
        device, first, key = parts[0].device, first_element(weight), mix(self.seed, step, number)
        if device.type == "cuda" and all(part.is_contiguous() for part in parts):
            from tune.modules.kernels.adamw_triton import step_rounded_

            step_rounded_(parts, step, key >> 1, first, settings)
            return
        in_order = [parts[0], *parts[2:], parts[1]]  # what is written comes first
        flat = [part.reshape(-1) for part in in_order]  # [n], views where the memory is in order
        num = _num_at_once(device)
        room = torch.empty(4, min(num, len(flat[0])), dtype=torch.float32, device=device)
        drawn = draw_bits(self.seed, num, device)
        count = torch.full((), float(step), device=device)
        starts = range(0, len(flat[0]), num)
        if isinstance(flat[0], FakeTensor):
            starts = starts[:2]  # measured for the memory it takes, of which later pieces need no more
        for begin in starts:
            pieces = [part[begin : begin + num] for part in flat]
            values = room[:, : len(pieces[0])]
            for copy, piece in zip(values, pieces):
                copy.copy_(piece)
            _fused(list(values), count, settings)
            kept = [place for place in range(3) if pieces[place].dtype != torch.bfloat16]
            for place in kept:
                pieces[place].copy_(values[place])
            cut_off_(values[:3], bits_at(drawn, key + first + begin, 3, values.shape[1]))
            for place in range(3):
                if place not in kept:
                    pieces[place].copy_(values[place])
        for part, changed in zip(in_order[:3], flat):
            if not part.is_contiguous():
                part.copy_(changed.view_as(part))


def _num_at_once(device: torch.device) -> int:
    """Return how many elements are stepped at once: so many that no thread is idle, and none leaves its cache."""
    if device.type != "cpu":
        return NUM_DRAWN
    return min(NUM_DRAWN, _AT_ONCE_PER_THREAD * torch.get_num_threads())


def _fused(parts: list[Tensor], step: Tensor, settings: _Settings) -> None:
    """Take one step in place.

    Args:
        parts: weight, mean of gradients and of their squares, and the gradient, of one type.
        step: which one, from 1 on, [] fp32.
        settings: of the weight's group.
    """
    weight, exp_avg, exp_avg_sq, grad = parts
    torch._fused_adamw_(
        [weight],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        **settings._asdict(),
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )
