"""What a component slot of a params dataclass holds: a dotted path and its keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMPONENT_KEY = "_component_"


@dataclass(frozen=True)
class Component:
    """Something a recipe builds: a class or function by its dotted path, and keyword arguments.

    An empty path means that nothing was chosen, and makes the component falsy.

    Args:
        path: dotted path, such as ``torch.optim.AdamW``. Short names are resolved to one before this point.
        kwargs: typed Python values; lists and mappings inside may hold further components.
    """

    path: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.path)

    def to_mapping(self) -> dict[str, Any]:
        """The component as a configuration writes it: ``{_component_: path, ...kwargs}``."""
        return {
            COMPONENT_KEY: self.path,
            **{name: _plain(value) for name, value in self.kwargs.items()},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.to_mapping()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
