"""torchtune's names: what is here under another name is found, what is not says what to use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def offer_names(module: str, here: Mapping[str, str], gone: Mapping[str, str]) -> None:
    """Give a module that torchtune's users import from its `__getattr__`.

    It is set, not written there: type checkers and the check of configs go on knowing the module's own names alone,
    and a typo stays one.

    Args:
        module: its name.
        here: torchtune's names that it does not have itself, each with the dotted path of what does the same.
        gone: those that nothing here stands for, each with what to use.
    """

    def find(name: str) -> Any:
        if name in here:
            home, _, leaf = here[name].rpartition(".")
            value = getattr(importlib.import_module(home), leaf)
            sys.modules[module].__dict__[name] = value  # found at once from now on
            return value
        advice = f": {gone[name]}" if name in gone else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{advice}")

    sys.modules[module].__dict__["__getattr__"] = find
