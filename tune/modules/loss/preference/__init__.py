"""Losses that learn from which of two answers is better, or whether one is good.

Notation of the formulas: c and r are the log-probabilities of the chosen and the rejected answer, summed over their
tokens, the one that closes the answer included and the prompt's not; |c| and |r| are their numbers of tokens; c' and r'
are c and r under the reference, which is the model as it was before training; D = (c - c') - (r - r');
s(x) = log sigmoid(x) = -softplus(-x). Each loss is that of a pair; the recipe divides their sum by the number of pairs.
"""

from __future__ import annotations

from tune.modules.loss.preference.base import AnswerLogProbs, PairwiseLoss, PreferenceLoss
from tune.modules.loss.preference.dpo import (
    DPOLoss,
    HingeLoss,
    IPOLoss,
    RobustLoss,
    RSOLoss,
    SigmoidNormLoss,
)
from tune.modules.loss.preference.kto import KTOLoss
from tune.modules.loss.preference.reference_free import ORPOLoss, SimPOLoss

__all__ = [
    "AnswerLogProbs",
    "DPOLoss",
    "HingeLoss",
    "IPOLoss",
    "KTOLoss",
    "ORPOLoss",
    "PairwiseLoss",
    "PreferenceLoss",
    "RSOLoss",
    "RobustLoss",
    "SigmoidNormLoss",
    "SimPOLoss",
]
