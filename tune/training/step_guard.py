"""Between backward pass and optimizer step: the norm, and whether the step may be taken at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from tune.errors import TrainingError
from tune.utils import get_logger
from tune.utils.sharding import full_tensor

__all__ = ["StepGuard", "clip_gradients"]

# Weights that have gone bad make every later loss bad too; skipping for ever would look like training.
MAX_SKIPPED_IN_A_ROW = 20
# Below this loss scale fp16's overflow is no longer a matter of the scale.
SMALLEST_SCALE = 1.0


def clip_gradients(weights: Iterable[nn.Parameter], max_norm: float | None, scale: float = 1.0) -> Tensor:
    """Return the 2-norm of all gradients together, and scale them down in place if it is above `max_norm`.

    Args:
        weights: whose gradients; those without one are left out.
        max_norm: None only measures.
        scale: multiplied into all gradients first, in place.

    Returns:
        The norm before scaling, over all processes, on the gradients' device: reading it would wait for the device.
    """
    with_gradient = [weight for weight in weights if weight.grad is not None]
    gradients = [weight.grad for weight in with_gradient if weight.grad is not None]
    if scale != 1.0:
        torch._foreach_mul_(gradients, scale)
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        # A norm that is no number scales nothing: whoever looks for where it went bad finds the gradients as they were.
        known = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
        torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, known)
    return norm


class StepGuard:
    """Decides before each optimizer step whether loss and gradient are numbers one can learn from.

    Args:
        policy: "stop" ends the run with an explanation; "skip" leaves the step out and goes on.
        scaler: while it is still finding fp16's loss scale, an overflowing gradient is part of its search.
        before_stopping: called with a step's micro-batches before they end the run by the policy to stop.
    """

    def __init__(
        self,
        policy: str,
        scaler: GradScaler,
        before_stopping: Callable[[Sequence[Any]], object] | None = None,
    ) -> None:
        self._policy = policy
        self._before_stopping = before_stopping
        self._scaler = scaler
        self._in_a_row = 0
        self.num_skipped = 0

    def allows(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor | None = None,
        micro_batches: Sequence[Any] = (),
    ) -> bool:
        """Tell whether step `step` of these micro-batches may be taken.

        With many processes, loss and norm are those of all of them: so they decide alike.

        One flag is read from the device, which waits for the backward pass: the price of deciding before the
        weights are touched, paid once per optimizer step.

        Raises:
            TrainingError: it may not, and the policy is to stop (or too many in a row were skipped).
        """
        good = torch.isfinite(loss)
        if grad_norm is not None:
            good = good & torch.isfinite(grad_norm)
        if bool(good):
            self._in_a_row = 0
            return True
        loss_is_finite = bool(torch.isfinite(loss))
        if loss_is_finite and self._scaler.is_enabled() and self._scaler.get_scale() > SMALLEST_SCALE:
            get_logger().info(f"step {step}: fp16 overflow, the loss scale is lowered")
            return False
        what = "loss" if not loss_is_finite else "gradient norm"
        value = float(loss) if not loss_is_finite or grad_norm is None else float(grad_norm)
        self._in_a_row += 1
        if self._policy == "stop":
            if self._before_stopping is not None:
                # Said first: where what comes now fails, that will be the error, and this may be why.
                get_logger().warning(f"step {step}: the {what} is {value}; the run ends before it")
                self._before_stopping(micro_batches)
            raise TrainingError(
                f"step {step}: the {what} is {value}, so the step was not taken; the weights are those after step "
                f"{step - 1}. Usual causes: lr too high (try a tenth), no clip_grad_norm, fp16. "
                "on_non_finite=skip leaves such steps out."
            )
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"step {step}: the {what} is {value}, for the {self._in_a_row}th step in a row. Nothing is being "
                "learnt; lower lr or set clip_grad_norm, and resume from an earlier saved step."
            )
        self.num_skipped += 1
        get_logger().warning(f"step {step}: the {what} is {value}; the step is left out (on_non_finite=skip)")
        return False
