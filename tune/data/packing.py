"""Packing: which short documents share a sequence."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from tune.errors import DataError


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return groups of documents, none longer than `capacity` together, by best fit from the longest down.

    The result depends on the lengths alone. Best-fit decreasing needs at most 11/9 of the fewest possible
    sequences, plus one (Johnson, 1974); arXiv:2404.10830 uses it for language models.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a sequence.

    Returns:
        For each sequence the indices of its documents, ascending.

    Raises:
        DataError: a document is longer than a sequence.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, index of the pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise DataError(
                f"a document of {length} tokens does not fit into a packed sequence of {capacity}"
            )
        tightest = bisect_left(room, (length, 0))
        if tightest == len(room):
            left, pack = capacity, len(packs)
            packs.append([])
        else:
            left, pack = room.pop(tightest)
        packs[pack].append(index)
        if left > length:
            insort(room, (left - length, pack))
    return [sorted(pack) for pack in packs]
