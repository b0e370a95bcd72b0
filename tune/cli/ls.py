"""`tune ls`: the recipes beside their configs, and what to type next."""

from __future__ import annotations

import sys

from tune.cli.arguments import Command, Given, Option, UsageError, nearest
from tune.cli.catalogue import RECIPES, Config, Recipe, find_recipe, list_configs, recipe_names
from tune.cli.terminal import columns, paint


def run(given: Given) -> int:
    """Print the table of recipes and configs."""
    if len(given.operands) > 1:
        raise UsageError(f"tune ls takes one recipe at most, not {len(given.operands)}")
    recipes: tuple[Recipe, ...] = RECIPES
    if given.operands:
        chosen = find_recipe(given.operands[0])
        if chosen is None:
            close = nearest(given.operands[0], recipe_names())
            raise UsageError(
                f"there is no recipe {given.operands[0]!r}" + (f"; did you mean {close}?" if close else "")
            )
        recipes = (chosen,)
    configs = list_configs()
    if "names" in given.switches:
        names = [recipe.name for recipe in recipes] + [
            c.name for r in recipes for c in _configs_of(r, configs)
        ]
        sys.stdout.write("".join(f"{name}\n" for name in names))
        return 0
    sys.stdout.write(_table(recipes, configs))
    return 0


def _configs_of(recipe: Recipe, configs: list[Config]) -> list[Config]:
    return [config for config in configs if config.recipe and find_recipe(config.recipe) == recipe]


def _table(recipes: tuple[Recipe, ...], configs: list[Config]) -> str:
    rows = [("RECIPE", "CONFIG")]
    for recipe in recipes:
        own = _configs_of(recipe, configs)
        rows.append((recipe.name, own[0].name if own else "(needs none)"))
        rows.extend(("", config.name) for config in own[1:])
        rows.append(("", ""))
    parts = [paint(columns(rows[:1] + rows[1:-1], indent="").split("\n")[0], "bold")]
    parts += columns(rows[:-1], indent="").split("\n")[1:]
    parts += ["", paint("also called:", "bold")]
    parts += [columns([(recipe.name, ", ".join(recipe.aliases)) for recipe in recipes if recipe.aliases])]
    parts += ["", paint("next:", "bold"), columns(_next_steps(recipes, configs))]
    return "\n".join(parts) + "\n"


def _next_steps(recipes: tuple[Recipe, ...], configs: list[Config]) -> list[tuple[str, str]]:
    steps = []
    for recipe in recipes:
        own = sorted(_configs_of(recipe, configs), key=lambda config: not config.name.startswith("tiny/"))
        if own:
            steps += [
                (f"tune run {recipe.name} --config {own[0].name}", "run it"),
                (f"tune cp {own[0].name} my.yaml", "make a config your own"),
                (f"tune cp {recipe.name} mine.py", "make a recipe your own"),
            ]
        steps.append((f"tune run {recipe.name} --help", "every parameter of it"))
    return steps


COMMAND = Command(
    name="ls",
    summary="List recipes and their configs.",
    usage="ls [RECIPE] [--names]",
    description="Lists the recipes that come with tune, each beside its configs, and says what to type next.",
    examples=(
        ("tune ls", "everything"),
        ("tune ls full_finetune", "the configs of one recipe"),
        ("tune ls --names", "names alone, one a line, for scripts"),
    ),
    run=run,
    operands=(("RECIPE", "Only this recipe and its configs."),),
    options=(Option(("--names",), "Print names alone, one a line."),),
)
