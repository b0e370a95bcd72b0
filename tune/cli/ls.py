"""`tune ls`: the recipes beside their configs, and what to type next."""

from __future__ import annotations

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.catalogue import RECIPES, Recipe, configs_of, example_config
from tune.cli.recipe_lookup import find_target
from tune.cli.terminal import say, section, table


def run(given: Given) -> int:
    """Print the table of recipes and configs."""
    recipes: tuple[Recipe, ...] = RECIPES
    for word in given.operands:
        recipe = find_target(word).recipe
        if recipe is None:
            raise UsageError(f"{word} is no recipe that comes with tune; `tune ls` lists them")
        recipes = (recipe,)
    if "names" in given.switches:
        names = [recipe.name for recipe in recipes] + [
            name for recipe in recipes for name in configs_of(recipe)
        ]
        say("".join(f"{name}\n" for name in names))
    else:
        say(_table(recipes))
    return 0


def _table(recipes: tuple[Recipe, ...]) -> str:
    rows = []
    steps = []
    for recipe in recipes:
        first, *others = configs_of(recipe) or ["(needs none)"]
        rows += [(recipe.name, first), *(("", name) for name in others), ("", "")]
        steps += _next_steps(recipe)
    named = [(recipe.name, ", ".join(recipe.aliases)) for recipe in recipes if recipe.aliases]
    listed = table(("RECIPE", "CONFIG"), rows)
    return f"{listed}\n{section('also called:', named)}\n\n{section('next:', steps)}\n"


def _next_steps(recipe: Recipe) -> list[tuple[str, str]]:
    steps = [(f"tune run {recipe.name} --help", "every parameter of it")]
    if config := example_config(recipe):
        steps = [
            (f"tune run {recipe.name} --config {config}", "run it"),
            (f"tune cp {config} my.yaml", "make a config your own"),
            (f"tune cp {recipe.name} mine.py", "make a recipe your own"),
            *steps,
        ]
    return steps


COMMAND = Command(
    name="ls",
    summary="List recipes and their configs.",
    description="Lists the recipes that come with tune, each beside its configs, and says what to type next.",
    examples=(
        ("tune ls", "everything"),
        ("tune ls full_finetune", "the configs of one recipe"),
        ("tune ls --names", "names alone, one a line, for scripts"),
    ),
    run=run,
    operands=(("[RECIPE]", "Only this recipe and its configs."),),
    options=(Option(("--names",), "Print names alone, one a line."),),
)
