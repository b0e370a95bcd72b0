"""The loss of a run, checked against the data that it is to learn from."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.data import CROSS_ENTROPY_IGNORE_IDX
from tune.modules.loss import LinearCrossEntropyLoss, PreferenceLoss, RewardLoss, require_weights
from tune.training.preference import check_preference_data

__all__ = ["build_loss", "is_cross_entropy", "perplexity"]


def build_loss(component: Component, *datasets: Any) -> Any:
    """Return the loss of a config: one that sums over target tokens, or one of preferences.

    Args:
        component: its class and arguments.
        datasets: what it is used on, each with a `report()`; None is passed over.

    Raises:
        ConfigError: the data gives tokens weights, which the loss cannot take; or it is no data of preferences, and the
            loss learns from these.
    """
    defaults = {"ignore_index": CROSS_ENTROPY_IGNORE_IDX, "reduction": "sum"}
    loss_fn: nn.Module = instantiate(component, defaults=defaults)
    if isinstance(loss_fn, PreferenceLoss | RewardLoss):
        check_preference_data(loss_fn, *datasets)
    if any(dataset is not None and dataset.report().num_weighted_tokens for dataset in datasets):
        require_weights(loss_fn)
    return loss_fn


def is_cross_entropy(loss_fn: nn.Module) -> bool:
    """Tell whether a loss is the cross-entropy of the next token and nothing else, so that it has a perplexity."""
    if isinstance(loss_fn, nn.CrossEntropyLoss):
        return loss_fn.label_smoothing == 0.0 and loss_fn.weight is None
    return isinstance(loss_fn, LinearCrossEntropyLoss)


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean cross-entropy in nats, infinity where it is beyond what a float holds."""
    return math.exp(loss) if loss < 709.0 else math.inf if loss == loss else math.nan
