"""Small things every floor above may use: device, precision, seed, ranks, logging, paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune.utils.device import get_device
from tune.utils.logging import get_logger
from tune.utils.paths import expand_path
from tune.utils.precision import DTYPE_NAMES, get_dtype
from tune.utils.ranks import get_rank, get_world_size, is_rank_zero
from tune.utils.seed import set_seed

if TYPE_CHECKING:
    from tune.config.parser import TuneArgumentParser

__all__ = [
    "DTYPE_NAMES",
    "TuneArgumentParser",
    "expand_path",
    "get_device",
    "get_dtype",
    "get_logger",
    "get_rank",
    "get_world_size",
    "is_rank_zero",
    "set_seed",
]


def __getattr__(name: str) -> Any:
    # The one name that looks up a floor: historic recipes import it from here.
    if name == "TuneArgumentParser":
        from tune.config.parser import TuneArgumentParser

        return TuneArgumentParser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
