"""Losses by name, for programs that do without a config."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tune.errors import ConfigError
from tune.modules.loss.linear_cross_entropy import CEWithChunkedOutputLoss, LinearCrossEntropyLoss

_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "LinearCrossEntropyLoss": LinearCrossEntropyLoss,
    "CEWithChunkedOutputLoss": CEWithChunkedOutputLoss,
    "CrossEntropyLoss": partial(nn.CrossEntropyLoss, reduction="sum"),
}


def get_loss(name: str, **arguments: Any) -> nn.Module:
    """Return the loss of a name that configs use, to be called by `loss_sum`; it sums over target tokens.

    Args:
        name: "LinearCrossEntropyLoss", "CEWithChunkedOutputLoss" or torch's "CrossEntropyLoss".
        **arguments: of its class.

    Raises:
        ConfigError: there is no such loss, or it has no such argument.
    """
    if name not in _LOSSES:
        near = difflib.get_close_matches(name, _LOSSES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no loss {name!r}; known are {', '.join(_LOSSES)}{hint}")
    known = inspect.signature(_LOSSES[name]).parameters
    if unknown := [argument for argument in arguments if argument not in known]:
        raise ConfigError(f"{name} has no argument {unknown[0]!r}; it has {', '.join(known)}")
    return _LOSSES[name](**arguments)
