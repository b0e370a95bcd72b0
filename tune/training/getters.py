"""Optimizers and metric loggers by the short names configs use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tune.config.instantiate import instantiate_by_name
from tune.config.slots import METRIC_LOGGER, OPTIMIZER

__all__ = ["get_metric_logger", "get_optimizer"]


def get_optimizer(name: str, params: Iterable[Tensor], **arguments: Any) -> Optimizer:
    """Return the optimizer that a short name or dotted path builds, as `optimizer:` in a config does.

    Args:
        name: such as "AdamW" or "SGD".
        params: the weights it trains.
        **arguments: of its class, such as `lr`.

    Raises:
        ConfigError: no such optimizer, or arguments it does not take.
    """
    optimizer: Optimizer = instantiate_by_name(name, OPTIMIZER, params, **arguments)
    return optimizer


def get_metric_logger(name: str, **arguments: Any) -> Any:
    """Return the metric logger that a short name or dotted path builds, as `metric_logger:` in a config does.

    Args:
        name: such as "disk", "stdout" or "tensorboard".
        **arguments: of its class, such as `log_dir`.

    Raises:
        ConfigError: no such logger, or arguments it does not take.
    """
    return instantiate_by_name(name, METRIC_LOGGER, **arguments)
