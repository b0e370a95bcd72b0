"""Small things every floor above may use: device, precision, seed, ranks, logging, paths.

What a name needs is imported when the name is first used: the command line needs only the paths.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.config.parser import TuneArgumentParser
    from tune.utils.device import get_device
    from tune.utils.logging import get_logger
    from tune.utils.paths import expand_path
    from tune.utils.precision import DTYPE_NAMES, get_dtype
    from tune.utils.ranks import get_rank, get_world_size, is_rank_zero
    from tune.utils.seed import set_seed
    from tune.utils.torchtune_functions import batch_to_device, get_world_size_and_rank

__all__ = [
    "DTYPE_NAMES",
    "TuneArgumentParser",
    "batch_to_device",
    "expand_path",
    "get_device",
    "get_dtype",
    "get_logger",
    "get_rank",
    "get_world_size",
    "get_world_size_and_rank",
    "is_rank_zero",
    "set_seed",
]

_HOMES = {
    "DTYPE_NAMES": "tune.utils.precision",
    # The one name that looks up a floor: historic recipes import it from here.
    "TuneArgumentParser": "tune.config.parser",
    "batch_to_device": "tune.utils.torchtune_functions",
    "expand_path": "tune.utils.paths",
    "get_device": "tune.utils.device",
    "get_dtype": "tune.utils.precision",
    "get_logger": "tune.utils.logging",
    "get_rank": "tune.utils.ranks",
    "get_world_size": "tune.utils.ranks",
    "get_world_size_and_rank": "tune.utils.torchtune_functions",
    "is_rank_zero": "tune.utils.ranks",
    "set_seed": "tune.utils.seed",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
