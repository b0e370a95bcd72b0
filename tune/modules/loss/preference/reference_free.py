"""Losses that compare two answers without a reference.

The letters are those of `tune.modules.loss.preference`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tune.modules.loss.preference.base import (
    AnswerLogProbs,
    LossWithSFT,
    PairwiseLoss,
    check_setting,
    smoothed,
)


class SimPOLoss(LossWithSFT):
    """Simple preference optimization: log-probabilities per token, a margin, and no reference.

    -s(b (c / |c| - r / |r|) - g)  # arXiv:2405.14734, eq. 6
    TRL (CPOTrainer) writes g / b within the brackets, which is the same; torchtune, too. With label_smoothing as in
    `DPOLoss`. TRL's CPOTrainer adds a term of SFT unless its cpo_alpha is 0; here sft_weight is 0.

    Args:
        beta: b.
        gamma: g, the margin that is asked for.
        label_smoothing: share of labels that are wrong, 0 to 0.5.
        sft_weight: as in `DPOLoss`.
    """

    needs_reference = False

    def __init__(
        self, beta: float = 2.0, gamma: float = 0.5, label_smoothing: float = 0.0, sft_weight: float = 0.0
    ) -> None:
        super().__init__(beta, sft_weight)
        check_setting(gamma >= 0, "gamma", gamma, "at least 0")
        check_setting(0 <= label_smoothing <= 0.5, "label_smoothing", label_smoothing, "from 0 to 0.5")
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        return smoothed(self.beta * (chosen.means - rejected.means) - self.gamma, self.label_smoothing)

    def reward(self, answers: AnswerLogProbs) -> Tensor:
        """Return beta times the log-probability per token, [n] fp32."""
        return self.beta * answers.means


class ORPOLoss(PairwiseLoss):
    """Odds-ratio preference optimization: likelihood and preference in one, and no reference.

    -mean log p(prompt and chosen answer) - b s(log-odds)  # arXiv:2403.07691, eq. 6 and 7
    log-odds = (c / |c| - log(1 - exp(c / |c|))) - (r / |r| - log(1 - exp(r / |r|))); b is called lambda there.
    The first term is the negative log-likelihood over all tokens of prompt and chosen answer, as the authors' code and
    TRL have it; the paper speaks of the answer. It is the mean over each pair's tokens; TRL's over those of a batch.

    Args:
        beta: b.
        train_on_prompt: count the prompt's tokens in the first term, too.
    """

    needs_reference = False

    def __init__(self, beta: float = 0.1, train_on_prompt: bool = True) -> None:
        super().__init__()
        check_setting(beta > 0, "beta", beta, "above 0")
        self.beta = beta
        self.needs_text = train_on_prompt

    def forward(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair, [n] fp32."""
        better, worse = chosen.means, rejected.means
        log_odds = (better - worse) - (_log1mexp(better) - _log1mexp(worse))
        likelihood = chosen.text_means if self.needs_text else better
        assert likelihood is not None
        return -likelihood - self.beta * F.logsigmoid(log_odds)

    def reward(self, answers: AnswerLogProbs) -> Tensor:
        """Return beta times the log-probability per token, [n] fp32."""
        return self.beta * answers.means

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"beta={self.beta}, train_on_prompt={self.needs_text}"


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x below 0, exact near 0 and far from it.  # Maechler 2012, eq. 7

    An answer that is certain would have infinite odds: x is kept below 0 by the smallest step of its dtype.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(torch.where(x < -0.6931472, x, -1.0)))
    return torch.where(x < -0.6931472, far, near)
