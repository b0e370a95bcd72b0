"""Copyable training scripts, their typed parameters and their configs: `tune.recipes`.

From a clone they can also be imported by the folder's own name, as `recipes`: the same modules, so that a class is one
class by either name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


class _SameModules(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for what is asked for by the folder's name alone, and is there."""
        found = importlib.util.find_spec(f"tune.{name}") if name.startswith("recipes.") else None
        return ModuleSpec(name, self, origin=found.origin) if found else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of tune in the place of the one that was begun."""
        sys.modules[module.__name__] = importlib.import_module(f"tune.{module.__name__}")

    def get_code(self, name: str) -> CodeType | None:
        """Return the program of a module, for `python -m`."""
        found = importlib.util.find_spec(f"tune.{name}")
        return (
            found.loader.get_code(found.name) if found and isinstance(found.loader, InspectLoader) else None
        )


if __name__ == "recipes":
    sys.meta_path.insert(0, _SameModules())
