"""Sudden rises of the loss, told apart from its ordinary noise."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice, pairwise
from statistics import median
from typing import Any

from tune.training.loss_mean import LossMean
from tune.utils import get_logger

__all__ = ["SpikeWatch"]

# Of a normal distribution: the standard deviation in terms of the median absolute difference of two draws.
_DEVIATIONS_PER_DIFFERENCE = 1.4826 / math.sqrt(2.0)
# Rises below this share of the loss (here of logarithms) are of no interest, however calm it was before.
_MIN_RISE = 0.05


class SpikeWatch:
    """Reports a loss that lies far above the recent ones, once until it is back among them.

    Judged are logarithms, since noise grows and shrinks with the loss. What is usual is the median of the last few; how
    far they stray is the median of the differences from each to the next, over many. Neither is moved by a spike or a
    few, nor the second by a loss that falls all the while. A loss that stays high becomes what is usual.

    With the defaults, of decaying curves of 150 losses under normal or log-normal noise fewer than 1 in 1,000 gives a
    false alarm; under noise with heavy tails (Student's t with 5 degrees), fewer than 1 in 50. Where losses stray by
    10%, twice the usual loss is a spike; by 30%, eight times.

    Args:
        window: how many of the last losses tell how far they stray.
        num_near: how many of them tell what is usual.
        threshold: standard deviations above the median that make a spike.
        min_losses: nothing is judged before there are so many.

    Attributes:
        mean: of the losses since one was last judged; saved and restored with what is judged by.
    """

    def __init__(
        self, window: int = 64, num_near: int = 16, threshold: float = 7.0, min_losses: int = 20
    ) -> None:
        assert 2 <= num_near <= min_losses <= window, "the window holds what is judged by"
        self.num_near = num_near
        self.threshold = threshold
        self.min_losses = min_losses
        self._recent: deque[float] = deque(maxlen=window)  # logarithms, the newest first
        self._is_high = False
        self.mean = LossMean()

    def observe(self, step: int, loss: float) -> bool:
        """Take in the loss of a step, read from the device already; return whether a spike begins, which is logged.

        Left out are losses that are no numbers, which are another matter (`StepGuard`), or not positive.
        """
        if not math.isfinite(loss) or loss <= 0.0:
            return False
        begins = len(self._recent) >= self.min_losses and self._judge(step, math.log(loss))
        self._recent.appendleft(math.log(loss))
        return begins

    def state_dict(self) -> dict[str, Any]:
        """Return the logarithms of the recent losses, whether a spike goes on, and what the next mean is to be of."""
        return {"recent": list(self._recent), "is_high": self._is_high, "mean": self.mean.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the watch that gave this state would."""
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self._is_high = bool(state["is_high"])
        self.mean.load_state_dict(state.get("mean", {}))  # steps saved by earlier versions have none

    def _judge(self, step: int, loss: float) -> bool:
        usual = median(islice(self._recent, self.num_near))
        rise = loss - usual
        if rise <= 0.5 * _MIN_RISE:  # most losses: how far they stray does not matter
            self._is_high = False
            return False
        strays = _DEVIATIONS_PER_DIFFERENCE * median(abs(b - a) for a, b in pairwise(self._recent))
        limit = max(self.threshold * strays, _MIN_RISE)
        if self._is_high:
            # Only well below the limit is it over: a loss about the limit is one excursion, not many.
            self._is_high = rise >= 0.5 * limit
            return False
        self._is_high = rise > limit
        if self._is_high:
            get_logger().warning(
                f"step {step}: the loss jumped to {math.exp(loss):.4g}; the last {self.num_near} logged were about "
                f"{math.exp(usual):.4g}, give or take {100 * math.expm1(strays):.0f}%. "
                "If it does not come back: lower lr, set clip_grad_norm."
            )
        return self._is_high
