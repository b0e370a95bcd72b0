"""`tune.run`: a recipe called from Python, such as from a notebook."""

from __future__ import annotations

import importlib
import os
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from tune.cli.catalogue import find_config
from tune.cli.recipe_lookup import add_to_path, find_target
from tune.config.trust import parse_trust, trust
from tune.errors import ConfigError


def run(
    recipe: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    trusted: Sequence[str] = (),
) -> Any:
    """Run a recipe in this process, and return how it ended.

    Args:
        recipe: a name from `tune ls`, or the path of your own recipe.
        settings: parameters by their names, dotted where they are inside a component; they count more than the config.
        config: a name from `tune ls`, or a path.
        trusted: packages outside tune whose components the settings may name; their code will run.

    Returns:
        A `RunResult`: output_dir, loss, model and more. What a recipe without an output_dir returns is its own.

    Raises:
        ConfigError: there is something wrong with the settings; every problem is shown.
        TuneError: the run failed for a reason that its message explains.
    """
    trust(*parse_trust(trusted))
    target = find_target(os.fspath(recipe))
    if target.is_own:
        add_to_path(target.file)
        main = runpy.run_path(str(target.file), run_name=f"_recipe_{target.file.stem}").get("recipe_main")
    else:
        main = importlib.import_module(f"tune.recipes.{target.file.stem}").recipe_main
    if main is None:
        raise ConfigError(f"{target.file} has no function recipe_main")
    return main(dict(settings or {}), config=None if config is None else find_config(os.fspath(config)))
