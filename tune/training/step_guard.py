"""Between backward pass and optimizer step: the norm, and whether the step may be taken at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from tune.errors import TrainingError
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.nonfinite_dump import (
    BatchLoss,
    dump_nonfinite_step,
    upcoming_sample_ids,
    weights_are_finite,
)
from tune.training.train_state import TrainState
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
    norm = torch.zeros(())
    if gradients:
        # bf16 would tell a norm of 1731.9 as 1736.
        dtype = reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
        norms = torch._foreach_norm(gradients, 2.0, dtype=dtype)
        norm = full_tensor(torch.linalg.vector_norm(torch.stack(norms)))
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
        state: of the run; says which step it is, and by its part `sampler` which examples are learnt from.
        checkpoints: of the run, where what is known of a bad step is kept.
    """

    def __init__(
        self, policy: str, scaler: GradScaler, state: TrainState, checkpoints: Checkpoints | None = None
    ) -> None:
        self._policy = policy
        self._scaler = scaler
        self._state = state
        self._checkpoints = checkpoints
        self._study: Callable[[], None] | None = None
        self._in_a_row = 0
        self.num_skipped = 0

    @contextmanager
    def studying(
        self,
        model: nn.Module,
        micro_batches: Sequence[Mapping[str, Tensor]],
        batch_loss: BatchLoss,
        save: Callable[[], object],
    ) -> Iterator[None]:
        """Take a step in the body. If it ends the run, the one before is saved first, and it is kept for study.

        Args:
            model: its gradients are looked at, too.
            micro_batches: of the step, on this process.
            batch_loss: computes the loss of one, to find where the numbers go bad.
            save: saves the state as it is then.
        """
        self._study = partial(self._keep_for_study, model, micro_batches, batch_loss, save)
        try:
            yield
        finally:
            self._study = None

    def _keep_for_study(
        self,
        model: nn.Module,
        micro_batches: Sequence[Mapping[str, Tensor]],
        batch_loss: BatchLoss,
        save: Callable[[], object],
    ) -> None:
        """Go back to the finished step, save it, and write what is known of the one that cannot be taken."""
        state, checkpoints = self._state, self._checkpoints
        assert checkpoints is not None, "a guard without checkpoints has nowhere to keep a step"
        sampler: Any = state.parts.get("sampler")
        sample_ids = upcoming_sample_ids(sampler, micro_batches) if sampler is not None else None
        failed_step = state.step
        state.undo_step()
        # With optimizer_in_bwd a bad gradient has been stepped with: such weights must not replace good ones.
        if state.step > checkpoints.last_step and weights_are_finite(model, checkpoints.mesh):
            save()
            checkpoints.wait()
        dump_nonfinite_step(
            checkpoints.output_dir,
            failed_step,
            model,
            micro_batches,
            checkpoints.mesh,
            batch_loss=batch_loss,
            sample_ids=sample_ids,
        )

    def allows(self, loss: Tensor, grad_norm: Tensor | None = None) -> bool:
        """Tell whether the step with this loss and gradient norm may be taken.

        With many processes, loss and norm are those of all of them: so they decide alike.

        One flag is read from the device, which waits for the backward pass: the price of deciding before the
        weights are touched, paid once per optimizer step. What the device misses is the time to launch one optimizer
        step. An optimizer that leaves bad steps out itself (`found_inf`), with the flag read a step late, would not
        wait; but torch's unfused optimizers and bitsandbytes' know no such flag, the gradients and random numbers of
        the bad step, which are kept for study, would be gone, and its line, validation and saved step must wait anyway.

        Raises:
            TrainingError: it may not, and the policy is to stop (or too many in a row were skipped).
        """
        step = self._state.step
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
            if self._study is not None:
                # Said first: where what comes now fails, that will be the error, and this may be why.
                get_logger().warning(f"step {step}: the {what} is {value}; the run ends before it")
                self._study()
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
