"""Losses: sums over target tokens, with an fp32 log-sum-exp."""

from __future__ import annotations

from tune.modules.loss.getters import get_loss
from tune.modules.loss.linear_cross_entropy import (
    CEWithChunkedOutputLoss,
    LinearCrossEntropyLoss,
    LossFromHidden,
)
from tune.modules.loss.loss_sum import loss_sum, require_weights

__all__ = [
    "CEWithChunkedOutputLoss",
    "LinearCrossEntropyLoss",
    "LossFromHidden",
    "get_loss",
    "loss_sum",
    "require_weights",
]
