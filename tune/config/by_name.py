"""Components by the short names configs use, for programs that do without a config."""

from __future__ import annotations

from typing import Any

from tune.config.component_check import resolve_component
from tune.config.instantiate import instantiate
from tune.config.slots import Slot
from tune.errors import ConfigError

__all__ = ["instantiate_by_name"]


def instantiate_by_name(name: str, slot: Slot, *args: Any, **arguments: Any) -> Any:
    """Build what a name means in a slot, as a config's `slot: name` does.

    Args:
        name: a short name or a dotted path.
        slot: where it is looked up, and what fits.
        *args: what the recipe would pass.
        **arguments: what a config would set.

    Raises:
        ConfigError: nothing of that name fits the slot, or it does not take these arguments.
    """
    resolved = resolve_component(name, slot)
    if resolved.errors:
        raise ConfigError("\n".join(error.message for error in resolved.errors))
    return instantiate(resolved.path, *args, **arguments)
