"""Losses that compare two answers, and the model with what it was before training.

The letters are those of `tune.modules.loss.preference`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tune.modules.loss.preference.base import AnswerLogProbs, LossWithSFT, check_setting, smoothed


class DPOLoss(LossWithSFT):
    """Direct preference optimization; with label_smoothing conservative DPO, with sft_weight RPO.

    -(1 - e) s(b D) - e s(-b D)  # arXiv:2305.18290, eq. 7
    With label_smoothing e above 0 it is conservative DPO, for labels of which a share e is wrong (Mitchell, "A note on
    DPO with noisy preferences", 2023); torchtune has it so, TRL 1.16 reads no label_smoothing for its loss "sigmoid".
    Log-probabilities are sums, as in the paper. log 2 where the model is still the reference.

    Args:
        beta: b, how much it costs to move away from the reference.
        label_smoothing: e, 0 to 0.5.
        sft_weight: of the chosen answer's mean negative log-likelihood, added to the loss (RPO).
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0) -> None:
        super().__init__(beta, sft_weight)
        check_setting(0 <= label_smoothing <= 0.5, "label_smoothing", label_smoothing, "from 0 to 0.5")
        self.label_smoothing = label_smoothing

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        return smoothed(self.beta * (chosen.ratios - rejected.ratios), self.label_smoothing)


class RobustLoss(LossWithSFT):
    """DPO made unbiased for labels of which a known share is flipped.

    (-(1 - e) s(b D) + e s(-b D)) / (1 - 2 e)  # arXiv:2403.00409, eq. 10
    In contrast to conservative DPO it may be negative.

    Args:
        beta: b.
        label_smoothing: e, the share of labels that are wrong; below 0.5.
        sft_weight: as in `DPOLoss`.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1, sft_weight: float = 0.0) -> None:
        super().__init__(beta, sft_weight)
        check_setting(0 <= label_smoothing < 0.5, "label_smoothing", label_smoothing, "from 0 to below 0.5")
        self.label_smoothing = label_smoothing

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        logits, e = self.beta * (chosen.ratios - rejected.ratios), self.label_smoothing
        return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)) / (1 - 2 * e)


class HingeLoss(LossWithSFT):
    """A hinge in place of DPO's sigmoid: pairs that are far enough apart teach nothing more.

    max(0, 1 - b D)  # arXiv:2309.06657 (RSO, with b called gamma there), arXiv:2305.10425 (SLiC)

    Args:
        beta: b.
        sft_weight: as in `DPOLoss`.
    """

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0) -> None:
        super().__init__(beta, sft_weight)

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        return (1 - self.beta * (chosen.ratios - rejected.ratios)).relu()


class RSOLoss(HingeLoss):
    """`HingeLoss` under torchtune's name, and with its argument.

    Args:
        gamma: what is called beta there.
    """

    def __init__(self, gamma: float = 0.1) -> None:
        super().__init__(gamma)


class IPOLoss(LossWithSFT):
    """Identity preference optimization: a margin to reach, and not to go beyond.

    ((c - c') / |c| - (r - r') / |r| - 1 / (2 b))^2  # arXiv:2310.12036, eq. 17
    b is called tau there. The paper writes sums; its authors used means per token, and so does TRL, since 1.0 and now.
    1 / (4 b^2) where the model is still the reference: 25 with b = 0.1.

    Args:
        beta: b.
        sft_weight: as in `DPOLoss`.
    """

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0) -> None:
        super().__init__(beta, sft_weight)

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        return (_mean_ratios(chosen) - _mean_ratios(rejected) - 1 / (2 * self.beta)).square()


class SigmoidNormLoss(LossWithSFT):
    """DPO on log-ratios per token, so that long answers have no advantage; Tulu 3 uses it.

    -s(b ((c - c') / |c| - (r - r') / |r|))  # arXiv:2411.15124, 5.1
    Per token differences are small: b is some 2 to 10 there.

    Args:
        beta: b.
        sft_weight: as in `DPOLoss`.
    """

    def __init__(self, beta: float = 0.1, sft_weight: float = 0.0) -> None:
        super().__init__(beta, sft_weight)

    def preference(self, chosen: AnswerLogProbs, rejected: AnswerLogProbs) -> Tensor:
        """Return the loss of each pair without the SFT term, [n] fp32."""
        return -F.logsigmoid(self.beta * (_mean_ratios(chosen) - _mean_ratios(rejected)))


def _mean_ratios(answers: AnswerLogProbs) -> Tensor:
    return answers.ratios / answers.num_tokens.clamp(min=1)
