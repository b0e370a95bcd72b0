"""The loss that learns from single answers, each judged good or bad.

The letters are those of `tune.modules.loss.preference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune.modules.loss.preference.base import AnswerLogProbs, PreferenceLoss, Sum, check_setting, settings_of


class KTOLoss(PreferenceLoss):
    """Kahneman-Tversky optimization, of answers that are judged one by one.

    w_D (1 - sigmoid(b (c - c' - z))) for good answers, w_U (1 - sigmoid(b (z - (r - r')))) for bad ones
    # arXiv:2402.01306, eq. 8
    z is the mean log-ratio of answers to prompts that they do not belong to: each prompt of a micro-batch with the next
    one's answer, over all processes; at least 0, and no gradient flows through it. It is that of a micro-batch, as in
    TRL and in the paper, so a step cut into smaller micro-batches has slightly other values of z.

    Args:
        beta: b.
        desirable_weight: w_D. The paper wants w_D times the number of good answers to be 1 to 4/3 times w_U times that
            of bad ones.
        undesirable_weight: w_U.
    """

    is_paired = False

    def __init__(
        self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_setting(beta > 0, "beta", beta, "above 0")
        for name, weight in (
            ("desirable_weight", desirable_weight),
            ("undesirable_weight", undesirable_weight),
        ):
            check_setting(weight >= 0, name, weight, "at least 0")
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def forward(self, answers: AnswerLogProbs, verdicts: Tensor, baseline: Tensor) -> Tensor:
        """Return the loss of each answer, [n] fp32; `baseline` is z."""
        gain = self.beta * (answers.ratios - baseline)
        good = self.desirable_weight * (1 - gain.sigmoid())
        bad = self.undesirable_weight * (1 - (-gain).sigmoid())
        return torch.where(verdicts > 0, good, bad) * (verdicts != 0)

    def losses(self, first: AnswerLogProbs, second: AnswerLogProbs, verdicts: Tensor, sum_: Sum) -> Tensor:
        """Return the loss of each answer, [n] fp32; `second` are the mismatched answers that z is taken from."""
        losses: Tensor = self(first, verdicts, self.baseline(second, sum_))
        return losses

    @staticmethod
    def baseline(mismatched: AnswerLogProbs, sum_: Sum) -> Tensor:
        """Return z, which every process must ask for: the mean log-ratio of mismatched answers of all of them."""
        is_real = (mismatched.num_tokens > 0).float()
        ratios = (mismatched.ratios.detach() * is_real).sum()
        total, number = sum_(torch.stack((ratios, is_real.sum())))
        mean: Tensor = total / number.clamp(min=1)
        return mean.clamp(min=0)

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return ", ".join(f"{name}={value}" for name, value in settings_of(self))
