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
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a schedule that rises linearly from 0, then follows a cosine down to 0.

    Args:
        optimizer: whose learning rates are scheduled; each group's own rate is its peak.
        num_warmup_steps: optimizer steps until the peak.
        num_training_steps: optimizer steps of the whole run.
        num_cycles: cosine periods after the warmup; 0.5 is one fall from the peak to 0.
        last_epoch: the last step taken, for a schedule that is continued; -1 starts anew.

    Raises:
        TrainingError: a count is negative.
    """

    def shape(progress: float) -> float:
        # arXiv:1608.03983, eq. 5, without restarts when num_cycles is 0.5.
        return max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * progress)))

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, last_epoch, shape)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Return a schedule that rises linearly from 0, then falls linearly to 0. Arguments as for cosine."""
    return _with_warmup(
        optimizer, num_warmup_steps, num_training_steps, last_epoch, lambda progress: max(0.0, 1.0 - progress)
    )


def get_constant_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int = 0, last_epoch: int = -1
) -> LambdaLR:
    """Return a schedule that rises linearly from 0 and stays at the peak. Arguments as for cosine."""
    return _with_warmup(optimizer, num_warmup_steps, num_warmup_steps, last_epoch, lambda progress: 1.0)


def get_lr(optimizer: Optimizer) -> float:
    """Return the learning rate of the first parameter group, as a number."""
    return float(optimizer.param_groups[0]["lr"])


def _with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    last_epoch: int,
    shape: Callable[[float], float],
) -> LambdaLR:
    """Build the schedule; `shape` maps the share of steps after the warmup (0 to 1) to a share of the peak."""
    if num_warmup_steps < 0 or num_training_steps < 0:
        raise TrainingError(
            f"num_warmup_steps ({num_warmup_steps}) and num_training_steps ({num_training_steps}) are counts "
            "of optimizer steps and cannot be negative."
        )
    num_shaped_steps = max(1, num_training_steps - num_warmup_steps)

    def scale(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return shape((step - num_warmup_steps) / num_shaped_steps)

    return LambdaLR(optimizer, scale, last_epoch)
