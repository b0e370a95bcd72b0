"""Experts in files that keep their matrices transposed, and of two kinds a row of each in turn (`WeightRule.in_turns`).

[E, columns, rows of all kinds], and of biases [E, rows of all kinds]: gates and what they open stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tune.modules import WeightRule


def turns_shape(shapes: Sequence[tuple[int, ...]], num_experts: int) -> tuple[int, ...]:
    """Return the shape of the tensor that holds the parameters of these shapes, one expert after the other."""
    rows = sum(shape[0] for shape in shapes) // num_experts
    return (num_experts, *shapes[0][1:], rows)


def take_turn(tensor: Tensor, rules: Sequence[WeightRule], place: int) -> Tensor:
    """Return the parameter of one rule of a stored tensor, as a view.

    Args:
        tensor: from the file.
        rules: of all that it holds, one expert after the other.
        place: which of them is meant.
    """
    num_kinds = len(rules) // rules[0].num_experts
    expert = tensor[place // num_kinds]  # [columns, rows of all kinds], or of biases these rows
    return (expert.t() if expert.dim() == 2 else expert)[place % num_kinds :: num_kinds]


def from_turns(parts: Sequence[Tensor], rules: Sequence[WeightRule]) -> Tensor:
    """Return the tensor that holds these parameters, contiguous.

    Args:
        parts: one expert after the other.
        rules: of each.
    """
    shape = turns_shape([tuple(part.shape) for part in parts], rules[0].num_experts)
    whole = torch.empty(shape, dtype=parts[0].dtype)
    for place, part in enumerate(parts):
        take_turn(whole, rules, place).copy_(part)
    return whole
