"""Losses that train a model to give the better of two answers the higher score.

Shapes: n pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError

__all__ = ["BradleyTerryLoss", "RewardLoss"]


class RewardLoss(nn.Module, ABC):
    """A loss over the scores of pairs of answers: `forward` gives that of each pair."""

    @abstractmethod
    def forward(self, chosen: Tensor, rejected: Tensor, margins: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, [n] fp32.

        Args:
            chosen: scores of the better answers. [n] fp32
            rejected: of the worse ones. [n] fp32
            margins: by how much these are better, as the data says; None where it does not. [n] fp32
        """


class BradleyTerryLoss(RewardLoss):
    """The negative log-likelihood of the better answer being preferred.

    -log sigmoid(r_c - r_r - m) + c (r_c + r_r)^2  # arXiv:2203.02155, eq. 1; m: arXiv:2307.09288, 3.2.2
    The second term keeps scores about 0, which differences alone leave open.  # arXiv:2312.09244, eq. 2
    As TRL 1.16 has it, where the mean over a batch is taken of both.

    Args:
        center_rewards_coefficient: c; 0.01 is recommended, 0 leaves the term out.
    """

    def __init__(self, center_rewards_coefficient: float = 0.0) -> None:
        super().__init__()
        if not center_rewards_coefficient >= 0:
            raise ConfigError(
                f"loss.center_rewards_coefficient is {center_rewards_coefficient:g}, expected at least 0"
            )
        self.center_rewards_coefficient = center_rewards_coefficient

    def forward(self, chosen: Tensor, rejected: Tensor, margins: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, [n] fp32."""
        difference = chosen - rejected
        loss = -F.logsigmoid(difference if margins is None else difference - margins)
        if self.center_rewards_coefficient:
            loss = loss + self.center_rewards_coefficient * (chosen + rejected) ** 2
        return loss

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"center_rewards_coefficient={self.center_rewards_coefficient}"
