"""Losses: sums over target tokens, with an fp32 log-sum-exp."""

from __future__ import annotations

from tune.modules.loss.answers import answer_log_probs
from tune.modules.loss.distillation import (
    DistillationLoss,
    ForwardKLLoss,
    ForwardKLWithChunkedOutputLoss,
    JensenShannonLoss,
    ReverseKLLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLLoss,
    SymmetricKLWithChunkedOutputLoss,
)
from tune.modules.loss.getters import get_loss
from tune.modules.loss.linear_cross_entropy import (
    CEWithChunkedOutputLoss,
    LinearCrossEntropyLoss,
    LossFromHidden,
)
from tune.modules.loss.log_probs import target_log_probs
from tune.modules.loss.loss_sum import loss_from_hidden, loss_sum, require_weights
from tune.modules.loss.preference import AnswerLogProbs, PreferenceLoss
from tune.modules.loss.reward import RewardLoss
from tune.modules.loss.two_heads import Head

__all__ = [
    "AnswerLogProbs",
    "CEWithChunkedOutputLoss",
    "DistillationLoss",
    "ForwardKLLoss",
    "ForwardKLWithChunkedOutputLoss",
    "Head",
    "JensenShannonLoss",
    "LinearCrossEntropyLoss",
    "LossFromHidden",
    "PreferenceLoss",
    "ReverseKLLoss",
    "ReverseKLWithChunkedOutputLoss",
    "RewardLoss",
    "SymmetricKLLoss",
    "SymmetricKLWithChunkedOutputLoss",
    "answer_log_probs",
    "get_loss",
    "loss_from_hidden",
    "loss_sum",
    "require_weights",
    "target_log_probs",
]
