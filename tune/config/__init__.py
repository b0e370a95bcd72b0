"""Configurations: typed parameters, components, and the command line that sets them.

Importing this package is cheap; what a name needs is imported when the name is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.config.component import Component
    from tune.config.describe import json_schema
    from tune.config.diagnostics import Diagnostic, Source, problem
    from tune.config.fields import ParamInfo, fields_of, fixed_on_resume, param
    from tune.config.instantiate import import_component, instantiate
    from tune.config.params import ParamsError, check_params
    from tune.config.parser import TuneArgumentParser
    from tune.config.recipe_main import parse
    from tune.config.resolution import Resolution, dump_params, log_config, resolution_of
    from tune.config.resolve import resolve
    from tune.config.slots import Slot

__all__ = [
    "Component",
    "Diagnostic",
    "ParamInfo",
    "ParamsError",
    "Resolution",
    "Slot",
    "Source",
    "TuneArgumentParser",
    "check_params",
    "dump_params",
    "fields_of",
    "fixed_on_resume",
    "import_component",
    "instantiate",
    "json_schema",
    "log_config",
    "param",
    "parse",
    "problem",
    "resolution_of",
    "resolve",
]

_HOMES = {
    "component": ("Component",),
    "describe": ("json_schema",),
    "diagnostics": ("Diagnostic", "Source", "problem"),
    "fields": ("ParamInfo", "fields_of", "fixed_on_resume", "param"),
    "instantiate": ("import_component", "instantiate"),
    "params": ("ParamsError", "check_params"),
    "parser": ("TuneArgumentParser",),
    "recipe_main": ("parse",),
    "resolution": ("Resolution", "dump_params", "log_config", "resolution_of"),
    "resolve": ("resolve",),
    "slots": ("Slot",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `tune.config.resolve` and `tune.config.instantiate` the functions, though files have these names.

    Importing a submodule makes it an attribute of its package, which would hide the function of the same name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME_OF and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
