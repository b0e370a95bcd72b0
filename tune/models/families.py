"""The families that checkpoints are recognised as: every `Family` that a file of this package defines."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from tune.modules import Family


@cache
def all_families() -> tuple[Family, ...]:
    """Return every family, in the order of its file's name."""
    names = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [import_module(f"{__package__}.{name}") for name in names]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Family)]
    return tuple({family.name: family for family in found}.values())  # files share one with their kin
