"""Losses: sums over target tokens, with an fp32 log-sum-exp."""

from __future__ import annotations

from .linear_cross_entropy import CEWithChunkedOutputLoss, HiddenLoss, LinearCrossEntropyLoss
from .loss_sum import loss_sum

__all__ = ["CEWithChunkedOutputLoss", "HiddenLoss", "LinearCrossEntropyLoss", "loss_sum"]
