"""Batches shared out among the processes of a run; what came of them is known to all, in the order of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tune.utils.mesh import Mesh

__all__ = ["in_rounds"]

B = TypeVar("B")
R = TypeVar("R")


def in_rounds(
    batches: Sequence[B], work: Callable[[B], R], mesh: Mesh, is_stopped: Callable[[], bool] | None = None
) -> Iterator[tuple[B, R]]:
    """Yield each batch with what `work` makes of it: on every process the same, in order, each having done its share.

    Batches are those of one process, so what comes of one depends on nothing but its content. After each round, in
    which every process does one, all tell each other: what is done may be written down at once, and a process waits for
    the slowest of its round. Every process must go through all of it.

    Args:
        batches: the same on every process.
        work: is done by one process, and returns what can be pickled.
        mesh: the processes.
        is_stopped: tells, on all processes alike, whether to end after this round.

    Raises:
        KeyboardInterrupt: `is_stopped` says so.
    """
    for start in range(0, len(batches), mesh.world_size):
        taken = batches[start : start + mesh.world_size]
        own = work(taken[mesh.rank]) if mesh.rank < len(taken) else None
        # A process without a batch in the last round has nothing to tell.
        yield from zip(taken, mesh.gather_to_all(own))
        if is_stopped is not None and is_stopped():
            raise KeyboardInterrupt
