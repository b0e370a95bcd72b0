"""What the flags on a message say of how much it is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.data.rows import describe
from tune.errors import DataError


def read_weight(turn: Mapping[str, Any], is_learnt: bool, where: str) -> float:
    """Return what the loss of a message's tokens is multiplied by: 0 where it is not learnt.

    Args:
        turn: the message as the row has it.
        is_learnt: whether a message of its role is learnt where nothing else is said.
        where: the message's place, for errors.

    Raises:
        DataError: the weight is no number from 0 to 1.
    """
    weight = turn.get("weight")
    if weight is None:
        return float(is_learnt)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise DataError(f"{where} has {describe(weight)} as weight, expected a number from 0 to 1")
    return float(weight) if is_learnt else 0.0
