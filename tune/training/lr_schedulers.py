"""Learning-rate schedules over optimizer steps: a warmup from zero, then a shape."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tune.errors import TrainingError

__all__ = [
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_linear_schedule_with_warmup",
    "get_lr",
]


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    warmup_ratio: float | None = None,
    min_lr_rate: float = 0.0,
) -> LambdaLR:
    """Return a schedule that rises linearly from 0, then follows a cosine down to 0, or to a share of the peak.

    Args:
        optimizer: whose learning rates are scheduled; each group's own rate is its peak.
        num_warmup_steps: optimizer steps until the peak.
        num_training_steps: optimizer steps of the whole run.
        num_cycles: cosine periods after the warmup; 0.5 is one fall from the peak to 0.
        last_epoch: the last step taken, for a schedule that is continued; -1 starts anew.
        warmup_ratio: share of the run until the peak, instead of num_warmup_steps; a part of a step counts as one.
        min_lr_rate: the lowest rate, as a share of the peak.

    Raises:
        TrainingError: a count is negative or missing, the warmup is given twice, or a share is none.
    """
    if not 0 <= min_lr_rate <= 1:
        raise TrainingError(f"min_lr_rate is a share of the peak, between 0 and 1, not {min_lr_rate}.")

    def shape(progress: float) -> float:
        # arXiv:1608.03983, eq. 5, without restarts when num_cycles is 0.5.
        share = max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * progress)))
        return min_lr_rate + (1.0 - min_lr_rate) * share

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, last_epoch, warmup_ratio, shape)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    last_epoch: int = -1,
    warmup_ratio: float | None = None,
) -> LambdaLR:
    """Return a schedule that rises linearly from 0, then falls linearly to 0. Arguments as for cosine."""

    def shape(progress: float) -> float:
        return max(0.0, 1.0 - progress)

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, last_epoch, warmup_ratio, shape)


def get_constant_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int = 0,
    last_epoch: int = -1,
    warmup_ratio: float | None = None,
    num_training_steps: int | None = None,
) -> LambdaLR:
    """Return a schedule that rises linearly from 0 and stays at the peak. Arguments as for cosine.

    num_training_steps is needed for warmup_ratio alone.
    """
    if warmup_ratio is None:
        num_training_steps = num_warmup_steps
    return _with_warmup(
        optimizer, num_warmup_steps, num_training_steps, last_epoch, warmup_ratio, lambda progress: 1.0
    )


def get_lr(optimizer: Optimizer) -> float:
    """Return the learning rate of the first parameter group, as a number."""
    return float(optimizer.param_groups[0]["lr"])


def _with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int | None,
    last_epoch: int,
    warmup_ratio: float | None,
    shape: Callable[[float], float],
) -> LambdaLR:
    """Build the schedule; `shape` maps the share of steps after the warmup (0 to 1) to a share of the peak."""
    if num_training_steps is None:
        raise TrainingError("num_training_steps is required: the optimizer steps of the whole run.")
    if num_warmup_steps < 0 or num_training_steps < 0:
        raise TrainingError(
            f"num_warmup_steps ({num_warmup_steps}) and num_training_steps ({num_training_steps}) are counts "
            "of optimizer steps and cannot be negative."
        )
    if warmup_ratio is not None:
        if num_warmup_steps:
            raise TrainingError(
                "num_warmup_steps and warmup_ratio both say how long the warmup is; give one."
            )
        if not 0 <= warmup_ratio <= 1:
            raise TrainingError(f"warmup_ratio is a share of the run, between 0 and 1, not {warmup_ratio}.")
        num_warmup_steps = math.ceil(num_training_steps * warmup_ratio)
    num_shaped_steps = max(1, num_training_steps - num_warmup_steps)

    def scale(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return shape((step - num_warmup_steps) / num_shaped_steps)

    return LambdaLR(optimizer, scale, last_epoch)
