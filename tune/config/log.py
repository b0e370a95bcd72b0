"""Putting the resolved configuration into a run's log."""

from __future__ import annotations

import logging
from typing import Any


def log_config(recipe_name: str, params: Any, logger: logging.Logger | None = None) -> None:
    """Log every parameter of a run with its value and, where it is known, its origin.

    Args:
        recipe_name: the recipe that runs.
        params: its params object.
        logger: where to; None means the logger "tune".
    """
    from tune.config.dump import dump_params

    target = logger if logger is not None else logging.getLogger("tune")
    target.info("Running %s with the resolved configuration:\n\n%s", recipe_name, dump_params(params))
