"""`tune schema`: the JSON Schema of a recipe's configs, for editors and other programs."""

from __future__ import annotations

import json

from tune.cli.arguments import Command, Given, UsageError
from tune.cli.recipe_lookup import Target, find_target
from tune.cli.terminal import say


def run(given: Given) -> int:
    """Print the schema of one recipe's configs."""
    say(schema_text(find_target(given.operands[0], importing=True)))
    return 0


def schema_text(target: Target) -> str:
    """Return the JSON Schema (draft-07) of a recipe's configs.

    Raises:
        UsageError: nothing is known about its params.
    """
    from tune.config.describe import json_schema

    if target.params is None:
        raise UsageError(f"{target.name} declares no params class")
    title = f"Config of the tune recipe {target.recipe.name}" if target.recipe else None
    return json.dumps(json_schema(target.params, title=title), indent=2) + "\n"


COMMAND = Command(
    name="schema",
    summary="Print the JSON Schema of a recipe's configs.",
    description=(
        "Prints a JSON Schema (draft-07) with every parameter, its type, default and help. Editors use it to complete "
        "and check configs; `tune cp` sets that up by itself."
    ),
    examples=(("tune schema full_finetune > full_finetune.schema.json", "for an editor or another program"),),
    run=run,
    operands=(("RECIPE", "A name from `tune ls`, or a .py file."),),
)
