"""What a preference loss is, and what it is given.

Shapes: n pairs, or examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError

# Adds up a tensor over all processes.
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AnswerLogProbs:
    """What a model makes of some answers.

    Args:
        sums: log-probabilities, summed over the tokens of each answer. [n] fp32
        num_tokens: of each. [n]
        reference: the sums under the reference; None for a loss that has none. [n] fp32
        text_means: mean log-probability over all tokens of prompt and answer; None unless a loss asks. [n] fp32
    """

    sums: Tensor
    num_tokens: Tensor
    reference: Tensor | None = None
    text_means: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """Log-probabilities per token. [n] fp32"""
        return self.sums / self.num_tokens.clamp(min=1)

    @property
    def ratios(self) -> Tensor:
        """Log-probabilities less the reference's. [n] fp32"""
        assert self.reference is not None, "the loss needs a reference"
        return self.sums - self.reference

    def beside(self, reference: Tensor) -> AnswerLogProbs:
        """Return them with what the reference makes of the same answers, [n]."""
        return replace(self, reference=reference)

    def __getitem__(self, part: slice | Tensor) -> AnswerLogProbs:
        """Return some of the answers."""
        rest = (None if each is None else each[part] for each in (self.reference, self.text_means))
        return AnswerLogProbs(self.sums[part], self.num_tokens[part], *rest)


class PreferenceLoss(nn.Module, ABC):
    """A loss over pairs of answers, or over answers that are judged one by one.

    Attributes:
        beta: what log-probabilities (or their ratios) are multiplied by to be rewards.
        needs_reference: whether it compares with the model as it was before training.
        needs_text: whether it reads the log-probability of the prompts as well.
        is_paired: whether it learns from pairs; else from single answers, each judged good or bad.
    """

    beta: float
    needs_reference = True
    needs_text = False
    is_paired = True

    @abstractmethod
    def losses(self, first: AnswerLogProbs, second: AnswerLogProbs, verdicts: Tensor, sum_: Sum) -> Tensor:
        """Return the loss of each pair, or of each judged answer, [n] fp32.

        Args:
            first: the chosen answers, or those that are judged.
            second: the rejected answers; or prompts with answers that are not their own, without a gradient.
            verdicts: 1 for a pair and for a good answer, -1 for a bad one; 0 for what only evens out processes, whose
                loss counts for nothing. [n]
            sum_: adds up a tensor over all processes, in place, and returns it; each of them must call this.
        """

    def reward(self, answers: AnswerLogProbs) -> Tensor:
        """Return the reward that the model gives each answer, [n] fp32: beta times its log-ratio to the reference."""
        return self.beta * answers.ratios


class PairwiseLoss(PreferenceLoss):
    """A loss over pairs: `forward` gives that of each."""

    @abstractmethod
    def forward(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair, [n] fp32."""

    def losses(self, first: AnswerLogProbs, second: AnswerLogProbs, verdicts: Tensor, sum_: Sum) -> Tensor:
        """Return the loss of each pair, [n] fp32; 0 for what only evens out processes."""
        losses: Tensor = self(first, second)
        return losses * (verdicts != 0)


class LossWithSFT(PairwiseLoss):
    """A loss to which the chosen answer's negative log-likelihood may be added.

    sft_weight * -(c / |c|): the mean over the tokens of each answer, so that each pair counts the same.
    # arXiv:2404.19733, eq. 1 (RPO), which divides by the tokens of prompt and answer
    TRL (loss_type [..., "sft"]) takes the mean over all tokens of a batch: the same where it holds one pair, or answers
    of one length.
    """

    def __init__(self, beta: float, sft_weight: float) -> None:
        super().__init__()
        check_setting(beta > 0, "beta", beta, "above 0")
        check_setting(sft_weight >= 0, "sft_weight", sft_weight, "at least 0")
        self.beta = beta
        self.sft_weight = sft_weight

    def forward(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair, [n] fp32."""
        loss = self.preference(chosen, rejected)
        return loss if self.sft_weight == 0 else loss - self.sft_weight * chosen.means

    @abstractmethod
    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return ", ".join(f"{name}={value}" for name, value in settings_of(self))


def smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) s(x) - e s(-x)."""
    loss = -F.logsigmoid(logits)
    if label_smoothing:
        loss = loss * (1 - label_smoothing) - label_smoothing * F.logsigmoid(-logits)
    return loss


def check_setting(is_right: bool, name: str, value: float, expected: str) -> None:
    if not is_right:
        raise ConfigError(f"loss.{name} is {value:g}, expected {expected}")


def settings_of(loss: nn.Module) -> Iterator[tuple[str, float]]:
    return (
        (name, value)
        for name, value in vars(loss).items()
        if isinstance(value, int | float) and name != "training"
    )
