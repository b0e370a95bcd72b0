"""`tune schema`: the JSON Schema of a recipe's configs, for editors and other programs."""

from __future__ import annotations

import json
import sys

from tune.cli.arguments import Command, Given, UsageError
from tune.cli.catalogue import Recipe
from tune.cli.recipe_lookup import find_target, make_recipes_importable


def run(given: Given) -> int:
    """Print the schema of one recipe's configs."""
    if len(given.operands) != 1:
        raise UsageError("tune schema takes one recipe: tune schema full_finetune")
    target = find_target(given.operands[0], importing=True)
    if target.params is None:
        raise UsageError(f"{target.name} declares no params class")
    sys.stdout.write(_schema_of(target.params, target.recipe.name if target.recipe else None))
    return 0


def schema_text(recipe: Recipe) -> str:
    """Return the JSON Schema (draft-07) of a built-in recipe's configs."""
    make_recipes_importable()
    return _schema_of(recipe.load_params(), recipe.name)


def _schema_of(params: type, recipe: str | None) -> str:
    from tune.config.describe import json_schema

    title = f"Config of the tune recipe {recipe}" if recipe else None
    return json.dumps(json_schema(params, title=title), indent=2) + "\n"


COMMAND = Command(
    name="schema",
    summary="Print the JSON Schema of a recipe's configs.",
    usage="schema RECIPE",
    description=(
        "Prints a JSON Schema (draft-07) with every parameter, its type, default and help. Editors use it to complete "
        "and check configs; `tune cp` sets that up by itself."
    ),
    examples=(("tune schema full_finetune > full_finetune.schema.json", "for an editor or another program"),),
    run=run,
    operands=(("RECIPE", "A name from `tune ls`, or a .py file."),),
)
