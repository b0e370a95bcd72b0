"""Components in tests: trust that ends with a block, and other arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tune.config import Component
from tune.config import trust as trust_module
from tune.config.trust import trust


@contextmanager
def trusting(*packages: str) -> Iterator[None]:
    """Allow configurations to name anything in `packages` within a with block."""
    before = set(trust_module._user_trusted)
    trust(*packages)
    try:
        yield
    finally:
        trust_module._user_trusted.clear()
        trust_module._user_trusted.update(before)


def with_arguments(component: Component, **kwargs: Any) -> Component:
    """Return the same component with `kwargs` set on top of its own."""
    return Component(component.path, {**component.kwargs, **kwargs})
