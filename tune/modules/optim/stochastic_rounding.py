"""Rounding to bf16 up or down by chance, so that on average nothing is lost.

bf16 keeps 8 bits of a number. Rounded to the nearest, an update of less than half a unit of the last of them vanishes,
a thousand times over; rounded up with the probability of what is cut off, it arrives.  # arXiv:2010.06192, section 4

The random numbers are counted: they follow from a key and from the place of an element in its tensor, not from a
generator's state, so that a run that is resumed, or sharded otherwise, rounds as one that was not.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

__all__ = ["NUM_DRAWN", "bits_at", "cut_off_", "draw_bits", "mix"]

_MASK64 = (1 << 64) - 1
# Random numbers that there are; elements further apart in a tensor share them. Each number of 16 bits is there equally
# often, so that over all places one may begin at the share that is rounded up is exactly what is cut off.
NUM_DRAWN = 1 << 20


def mix(*numbers: int) -> int:
    """Return 64 well mixed bits of some whole numbers.  # splitmix64, doi:10.1145/2714064.2660195"""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def draw_bits(seed: int, num: int, device: torch.device) -> Tensor:
    """Return what `bits_at` takes rows of `num` elements from, at most `NUM_DRAWN`; drawn once for each seed."""
    # Numbers without memory, of a step that is only measured, are not kept for the others.
    return (_drawn if detect_fake_mode() is None else _drawn.__wrapped__)(seed, num, device)


def bits_at(drawn: Tensor, key: int, num_kinds: int, num: int) -> Tensor:
    """Return 16 random bits for each of `num` elements in a row, in each of some tensors, [kinds, num] int32.

    Args:
        drawn: what they are taken from.
        key: where the first element's are. The next element's follow with the next key.
        num_kinds: tensors that have such an element.
        num: elements.
    """
    return drawn.as_strided((num_kinds, num), (NUM_DRAWN // num_kinds, 1), key % NUM_DRAWN)


@lru_cache(maxsize=4)
def _drawn(seed: int, num: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed) >> 1)
    drawn = torch.randperm(NUM_DRAWN, generator=generator, dtype=torch.int32).bitwise_and_(0xFFFF)
    # Repeated until a row of any kind may begin anywhere.
    return torch.cat([drawn, drawn, drawn[:num]]).to(device)


def cut_off_(values: Tensor, bits: Tensor) -> None:
    """Round fp32 `values` in place to numbers that bf16 holds, up or down by chance.

    Numbers that bf16 holds stay as they are; infinity and NaN too.

    Args:
        values: fp32, of any shape.
        bits: 16 random bits each, int32.
    """
    if values.device.type != "cpu":
        # A GPU's own NaN is all ones: with anything added it would become a number. A CPU's has no low bits.
        bits = bits.masked_fill(values.isnan(), 0)
    values.view(torch.int32).add_(bits).bitwise_and_(-(1 << 16))
