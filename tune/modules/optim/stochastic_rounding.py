"""Rounding to bf16 up or down by chance, so that on average nothing is lost.

bf16 keeps 8 bits of a number. Rounded to the nearest, an update of less than half a unit of the last of them vanishes,
a thousand times over; rounded up with the probability of what is cut off, it arrives.  # arXiv:2010.06192, section 4

The random numbers are counted: they follow from a key and from the place of an element in its tensor, not from a
generator's state, so that a run that is resumed, or sharded otherwise, rounds as one that was not.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RandomBits", "mix", "round_into_"]

_MASK64 = (1 << 64) - 1
# Random numbers that are drawn at most for a step; elements further apart in a tensor share them.
_MAX_DRAWN = 1 << 20


def mix(*numbers: int) -> int:
    """Return 64 well mixed bits of some whole numbers.  # splitmix64, doi:10.1145/2714064.2660195"""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


class RandomBits:
    """16 random bits for each element of any tensor, the same for the same key.

    Args:
        key: what they follow from.
        num: elements of the largest tensor they are for.
        at_once: of how many elements in a row bits are asked for at most.
        device: where they are.
    """

    def __init__(self, key: int, num: int, at_once: int, device: torch.device) -> None:
        self._num = min(num, _MAX_DRAWN)
        generator = torch.Generator().manual_seed(key >> 1)
        drawn = torch.empty(self._num, dtype=torch.int32).random_(0, 1 << 16, generator=generator)
        # Long enough for a row of bits to begin anywhere.
        self._bits = drawn.repeat(-(-at_once // self._num) + 1).to(device)

    def at(self, key: int, first: int, num: int) -> Tensor:
        """Return the bits of elements `first` to `first + num` of the tensor with this key, [num] int32."""
        start = (key + first) % self._num
        return self._bits[start : start + num]


def round_into_(target: Tensor, values: Tensor, bits: Tensor) -> None:
    """Write fp32 `values` into bf16 `target`, rounded up or down by chance; `values` is used up.

    Args:
        target: [n] bf16.
        values: [n] fp32. Numbers that bf16 holds stay as they are; infinity and NaN too.
        bits: 16 random bits each, [n] int32.
    """
    cut = values.view(torch.int32)
    cut.add_(bits).bitwise_and_(-(1 << 16))
    target.copy_(values)
