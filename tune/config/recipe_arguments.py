"""What a component says to the recipe, beside what it is built with."""

from __future__ import annotations

from tune.config.argument_ranges import Bounds
from tune.config.component_check import ResolvedName
from tune.config.slots import SHUFFLE_BUFFER, STREAMING, WEIGHT, Slot
from tune.config.typing import BOOL, FLOAT, INT, TypeSpec

RECIPE_ARGUMENTS: dict[str, tuple[TypeSpec, Bounds | None]] = {
    WEIGHT: (FLOAT, Bounds(minimum=1e-6, maximum=1e6)),
    STREAMING: (BOOL, None),
    SHUFFLE_BUFFER: (INT, Bounds(minimum=1, maximum=10**7)),
}


def recipe_arguments(slot: Slot | None, path: str, resolved: ResolvedName) -> tuple[str, ...]:
    """Return the arguments that the component at `path` may have for the recipe."""
    if slot is None:
        return ()
    is_ours = resolved.path.startswith("tune.")
    is_entry = path.rpartition(".")[2].isdecimal()
    return (*(slot.of_recipe if is_ours else ()), *(slot.of_entries if is_entry else ()))
