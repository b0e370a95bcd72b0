"""Ways to stretch rotary frequencies, so that a model reads further than it was first trained to.

Shapes: r channels that turn, so r / 2 frequencies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class RopeScaling(ABC):
    """One way: what becomes of the frequencies, and a factor on cosines and sines."""

    @property
    def attention_factor(self) -> float:
        """Factor on cosines and sines alike."""
        return 1.0

    @property
    def switch_len(self) -> int | None:
        """Positions that a text cannot outgrow without being read anew; None: there is no such place."""
        return None

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies depend on how long the text is."""
        return False

    def alike(self, text_len: int) -> int:
        """Return the length that stands for this one and all others with the same frequencies."""
        del text_len
        return 0

    @abstractmethod
    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies [r / 2] to turn with.

        Args:
            frequencies: the unscaled ones [r / 2], fp32, falling.
            base: what they were formed from.
            text_len: positions of the text, as `alike` gives them.
        """

    def problems(self, rotary_channels: int) -> Iterator[str]:
        """Yield what is wrong with the settings for heads in which this many channels turn."""
        del rotary_channels
        for name, value in vars(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not 0 < value < math.inf:
                yield f"rope_scaling.{name} is {value}; it must be above 0 and finite"


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Every position counts as one `factor`-th.  # arXiv:2306.15595, eq. 4

    Args:
        factor: how many times longer texts become.
    """

    factor: float

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies divided by the factor."""
        return frequencies / self.factor


@dataclass(frozen=True)
class ProportionalScaling(RopeScaling):
    """Only the fastest frequencies turn, those of a share of the channels; the others stand still.

    # transformers, modeling_rope_utils.py, _compute_proportional_rope_parameters

    Args:
        share: of the channels, above 0 and at most 1.
        factor: what the frequencies are divided by.
    """

    share: float
    factor: float = 1.0

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies, zero from the share on."""
        num_turning = int(self.share * (2 * frequencies.shape[0]) // 2)
        turns = torch.arange(frequencies.shape[0], device=frequencies.device) < num_turning
        return torch.where(turns, frequencies, 0.0) / self.factor

    def problems(self, rotary_channels: int) -> Iterator[str]:
        """Yield settings that are not above 0, and a share of more than all."""
        yield from super().problems(rotary_channels)
        if self.share > 1:
            yield f"rope_scaling.share is {self.share}; it must be at most 1"


@dataclass(frozen=True)
class DynamicScaling(RopeScaling):
    """A base that grows with the text, once it is longer than the original length.  # arXiv:2309.00071, 3.3

    Each token is turned by the length that its text has when it is read: keys that are kept stay as they are while a
    text grows, as in transformers. Unlike there, what was read before another text plays no part.

    Args:
        factor: how many times longer texts are meant to become.
        original_max_seq_len: positions of the first training.
    """

    factor: float
    original_max_seq_len: int

    @property
    def follows_length(self) -> bool:
        """It does."""
        return True

    def alike(self, text_len: int) -> int:
        """Return the length, or the original one if that is longer."""
        return max(text_len, self.original_max_seq_len)

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies that follow from the base for this length."""
        if text_len == self.original_max_seq_len:
            return frequencies
        channels = 2 * frequencies.shape[0]
        # In fp32, as the reference does: the power would make more of a difference in the last digit.
        stretched = self.factor * torch.tensor(text_len) / self.original_max_seq_len - (self.factor - 1)
        grown = base * stretched ** (channels / (channels - 2))
        exponents = torch.arange(0, channels, 2, device=frequencies.device).float() / channels
        return 1.0 / (grown.to(frequencies.device) ** exponents)

    def problems(self, rotary_channels: int) -> Iterator[str]:
        """Yield settings that are not above 0 or make nothing longer, and too few channels to have a slowest one."""
        yield from super().problems(rotary_channels)
        if self.factor < 1:
            yield f"rope_scaling.factor is {self.factor}; it must be at least 1"
        if rotary_channels <= 2:
            yield f"rope_scaling that follows the length needs more than the {rotary_channels} turning channels"


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Slow frequencies are divided, fast ones kept, those between blended.  # arXiv:2407.21783, 3.4.2

    The bounds are wavelengths in units of the original length, as in Meta's llama_models, apply_scaling.

    Args:
        factor: what slow frequencies are divided by.
        low_freq_factor: wavelengths longer than the original length over this are slow.
        high_freq_factor: wavelengths shorter than the original length over this are fast.
        original_max_seq_len: positions of the first training.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies, the slow ones divided by the factor."""
        # How often a frequency turns within the original length: the wavelength is 2 pi over the frequency.
        turns = self.original_max_seq_len * frequencies / (2 * math.pi)  # [r / 2]
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return (1 - kept) * frequencies / self.factor + kept * frequencies

    def problems(self, rotary_channels: int) -> Iterator[str]:
        """Yield settings that are not above 0, and bounds in the wrong order."""
        yield from super().problems(rotary_channels)
        if not self.low_freq_factor < self.high_freq_factor:
            yield (
                f"rope_scaling.low_freq_factor is {self.low_freq_factor}; it must be below high_freq_factor "
                f"{self.high_freq_factor}"
            )


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """Frequencies blended between divided and kept by how often they turn.  # arXiv:2309.00071, 3.2 to 3.4

    Args:
        factor: how many times longer texts become.
        original_max_seq_len: positions of the first training.
        beta_fast: frequencies that turn more often than this within them are kept.
        beta_slow: those that turn less often are divided.
        magnitude: factor on cosines and sines; None: the paper's, 0.1 ln(factor) + 1.
        truncate: the blend's bounds are rounded outwards to whole channels.
        mscale, mscale_all_dim: with both given, the magnitude is what the paper's would be with the first in place of
            its 1, over what it would be with the second.  # DeepSeek-V2, modeling_deepseek.py
    """

    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float | None = None
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @property
    def attention_factor(self) -> float:
        """The magnitude given, or what follows from the factor."""
        if self.magnitude is not None:
            return self.magnitude
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    def _magnitude(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return the frequencies, the slow ones divided by the factor."""
        num = frequencies.shape[0]
        low, high = (self._channel(turns, 2 * num, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * num - 1)
        channels = torch.arange(num, dtype=torch.float32, device=frequencies.device)
        # A step where both bounds fall together.
        divided = ((channels - low) / (high - low or 0.001)).clamp(0.0, 1.0)  # [r / 2]
        return divided * frequencies / self.factor + (1 - divided) * frequencies

    def _channel(self, turns: float, rotary_channels: int, base: float) -> float:
        """Return the channel, as a fraction, whose frequency turns this often within the original length."""
        wavelengths = self.original_max_seq_len / (turns * 2 * math.pi)
        return rotary_channels * math.log(wavelengths) / (2 * math.log(base))


@dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """A divisor found by search for each frequency, one set for short texts and one for long.  # arXiv:2402.13753

    Args:
        short_factors: divisors [r / 2] for texts within the original length.
        long_factors: divisors [r / 2] for longer ones.
        original_max_seq_len: positions of the first training.
        magnitude: factor on cosines and sines, for short and long texts alike.
        reads_anew: a text that outgrows the original length while it is generated is read anew, as Phi's are; else its
            earlier keys stay as they are, as in transformers' other families.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_seq_len: int
    magnitude: float = 1.0
    reads_anew: bool = True

    @property
    def attention_factor(self) -> float:
        """The magnitude."""
        return self.magnitude

    @property
    def switch_len(self) -> int | None:
        """The original length."""
        return self.original_max_seq_len if self.reads_anew else None

    @property
    def follows_length(self) -> bool:
        """It does, in two sets."""
        return True

    def alike(self, text_len: int) -> int:
        """Return the original length for texts within it, one more for all others."""
        return self.original_max_seq_len + (text_len > self.original_max_seq_len)

    def scale(self, frequencies: Tensor, base: float, text_len: int) -> Tensor:
        """Return each frequency over its divisor."""
        factors = self.long_factors if text_len > self.original_max_seq_len else self.short_factors
        return frequencies / torch.tensor(factors, dtype=torch.float32, device=frequencies.device)

    def problems(self, rotary_channels: int) -> Iterator[str]:
        """Yield settings that are not above 0, and lists of another length than the frequencies'."""
        yield from super().problems(rotary_channels)
        for name, factors in (("short_factors", self.short_factors), ("long_factors", self.long_factors)):
            if len(factors) != rotary_channels // 2:
                yield (
                    f"rope_scaling.{name} has {len(factors)} entries; {rotary_channels} turning channels need "
                    f"{rotary_channels // 2}"
                )
            if not all(0 < factor < math.inf for factor in factors):
                yield f"rope_scaling.{name} must be above 0 and finite"


@dataclass(frozen=True)
class QueryScaling:
    """Queries that grow with their position, a step at each multiple of the original length.

    So attention to long texts stays as sharp as to short ones; up to the original length nothing changes.
    # transformers, models/ministral3/modeling_ministral3.py, get_llama_4_attn_scale

    Args:
        beta: how much they grow: by beta ln(n + 1) after n times the original length.
        original_max_seq_len: positions of the first training.
    """

    beta: float
    original_max_seq_len: int

    def factors(self, positions: Tensor) -> Tensor:
        """Return the factors [b or 1, s, 1, 1], fp32, on queries at positions [b or 1, s]."""
        steps = (positions / self.original_max_seq_len).floor()
        return (1 + self.beta * (1 + steps).log())[..., None, None]
