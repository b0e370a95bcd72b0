"""What `tune.training.saving` asks of the mesh of the run that is under way, until it is handed the mesh itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from tune.utils.mesh import Mesh, current_mesh

__all__ = ["from_rank_zero", "gather_to_all", "max_over_ranks", "open_host_group", "seed_this_rank"]

T = TypeVar("T")


def _talking_through(group: Any) -> Mesh:
    mesh = current_mesh()
    return replace(mesh, host_group=group or mesh.host_group)


def from_rank_zero(make: Callable[[], T], group: Any = None) -> T:
    """See `Mesh.from_rank_zero`."""
    return _talking_through(group).from_rank_zero(make)


def gather_to_all(value: T, group: Any = None) -> list[T]:
    """See `Mesh.gather_to_all`."""
    return _talking_through(group).gather_to_all(value)


def max_over_ranks(number: float) -> float:
    """See `Mesh.max`."""
    return current_mesh().max(number)


def open_host_group() -> Any:
    """See `Mesh.for_thread`."""
    return current_mesh().for_thread().host_group


def seed_this_rank(seed: int) -> None:
    """See `Mesh.seed_this_rank`."""
    current_mesh().seed_this_rank(seed)
